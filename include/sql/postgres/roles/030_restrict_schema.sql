-- Applied by a superuser in each of the databases coldchain and iceberg: before PostgreSQL 15 anybody could make tables here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
