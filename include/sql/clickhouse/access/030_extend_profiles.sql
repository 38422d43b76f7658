-- Only where system.settings holds both names (ClickHouse 25.3 and later): an older server refuses a name that it does not
-- know, and Coldchain does not send it one.
CREATE SETTINGS PROFILE IF NOT EXISTS coldchain_reader_parquet;
ALTER SETTINGS PROFILE coldchain_reader_parquet SETTINGS
    output_format_parquet_max_dictionary_size = 65536 MIN 1024 MAX 1048576 CHANGEABLE_IN_READONLY,
    output_format_parquet_write_bloom_filter = 0 MIN 0 MAX 1 CHANGEABLE_IN_READONLY;
ALTER ROLE coldchain_offload SETTINGS PROFILE 'coldchain_reader', PROFILE 'coldchain_reader_parquet';
