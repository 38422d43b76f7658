-- The catalog's two tables as pyiceberg and Java's JdbcCatalog (schema version V1) make them: applied by a superuser in the
-- database iceberg. Its role may change their rows and nothing else: no table, no column, no trigger.
CREATE TABLE IF NOT EXISTS public.iceberg_tables (
    catalog_name               varchar(255) NOT NULL,
    table_namespace            varchar(255) NOT NULL,
    table_name                 varchar(255) NOT NULL,
    metadata_location          varchar(1000),
    previous_metadata_location varchar(1000),
    iceberg_type               varchar(5),
    PRIMARY KEY (catalog_name, table_namespace, table_name)
);
CREATE TABLE IF NOT EXISTS public.iceberg_namespace_properties (
    catalog_name   varchar(255) NOT NULL,
    namespace      varchar(255) NOT NULL,
    property_key   varchar(255) NOT NULL,
    property_value varchar(1000),
    PRIMARY KEY (catalog_name, namespace, property_key)
);
ALTER TABLE public.iceberg_tables OWNER TO iceberg_owner;
ALTER TABLE public.iceberg_namespace_properties OWNER TO iceberg_owner;
REVOKE ALL ON public.iceberg_tables, public.iceberg_namespace_properties FROM PUBLIC, iceberg;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.iceberg_tables, public.iceberg_namespace_properties TO iceberg;
