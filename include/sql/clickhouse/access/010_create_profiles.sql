-- What Coldchain's users may set. Apply the files of this folder in order, as a user with access management:
--   clickhouse-client --multiquery < 010_create_profiles.sql
-- readonly = 1 forbids every change but those named here, and nobody can lift it. Each overflow mode would otherwise be a way
-- to get a part of the rows without an error. The last CONST ones let a query name a thousand columns several times.
CREATE SETTINGS PROFILE IF NOT EXISTS coldchain_reader;
ALTER SETTINGS PROFILE coldchain_reader SETTINGS
    readonly = 1 CONST,
    distinct_overflow_mode = 'throw' CONST,
    group_by_overflow_mode = 'throw' CONST,
    join_overflow_mode = 'throw' CONST,
    read_overflow_mode = 'throw' CONST,
    read_overflow_mode_leaf = 'throw' CONST,
    result_overflow_mode = 'throw' CONST,
    set_overflow_mode = 'throw' CONST,
    sort_overflow_mode = 'throw' CONST,
    timeout_overflow_mode = 'throw' CONST,
    timeout_overflow_mode_leaf = 'throw' CONST,
    transfer_overflow_mode = 'throw' CONST,
    max_query_size = 16777216 CONST,
    max_ast_elements = 1000000 CONST,
    max_expanded_ast_elements = 10000000 CONST,
    output_format_compression_level = 3 MIN 1 MAX 9 CHANGEABLE_IN_READONLY,
    output_format_json_quote_64bit_integers = 0 MIN 0 MAX 1 CHANGEABLE_IN_READONLY,
    output_format_json_quote_decimals = 1 MIN 0 MAX 1 CHANGEABLE_IN_READONLY,
    output_format_parquet_compression_method = 'zstd' CHANGEABLE_IN_READONLY,
    output_format_parquet_fixed_string_as_fixed_byte_array = 1 MIN 0 MAX 1 CHANGEABLE_IN_READONLY,
    output_format_parquet_parallel_encoding = 1 MIN 0 MAX 1 CHANGEABLE_IN_READONLY,
    output_format_parquet_row_group_size = 1000000 MIN 10000 MAX 10000000 CHANGEABLE_IN_READONLY,
    output_format_parquet_string_as_string = 1 MIN 0 MAX 1 CHANGEABLE_IN_READONLY,
    output_format_parquet_use_custom_encoder = 1 MIN 0 MAX 1 CHANGEABLE_IN_READONLY,
    max_threads = 0 MIN 1 MAX 1024 CHANGEABLE_IN_READONLY,
    prefer_column_name_to_alias = 0 MIN 0 MAX 1 CHANGEABLE_IN_READONLY,
    priority = 0 MIN 0 MAX 1000 CHANGEABLE_IN_READONLY;
-- The validator reads other tables under FINAL by a setting, for an engine that does not know FINAL must not fail there.
CREATE SETTINGS PROFILE IF NOT EXISTS coldchain_validator;
ALTER SETTINGS PROFILE coldchain_validator SETTINGS
    INHERIT 'coldchain_reader',
    final = 0 MIN 0 MAX 1 CHANGEABLE_IN_READONLY;
