-- pg_dump keeps what the loader has loaded: positions and rows go back together. Members and leases start empty after a restore.
SELECT pg_catalog.pg_extension_config_dump('tally.loader_sources', '');
SELECT pg_catalog.pg_extension_config_dump('tally.loader_sources_source_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('tally.loader_offsets', '');
SELECT pg_catalog.pg_extension_config_dump('tally.dead_letters', '');
SELECT pg_catalog.pg_extension_config_dump('tally.loader_gaps', '');
