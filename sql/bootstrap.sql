-- First of all: refuse a schema that holds somebody's objects. A planted function would beat ours by a better type match.
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace OPERATOR(pg_catalog.=) 'tally'::pg_catalog.regnamespace)
     OR EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.pronamespace OPERATOR(pg_catalog.=) 'tally'::pg_catalog.regnamespace)
     OR EXISTS (SELECT FROM pg_catalog.pg_type t WHERE t.typnamespace OPERATOR(pg_catalog.=) 'tally'::pg_catalog.regnamespace)
  THEN
    RAISE EXCEPTION 'schema "tally" is not empty'
      USING ERRCODE = '55000',
            DETAIL = 'The extension keeps its objects in this schema and will not share it with others.',
            HINT = 'Look at what is in it (\d tally.*), move or drop that, and run CREATE EXTENSION tally again.';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n
                 WHERE n.nspname OPERATOR(pg_catalog.=) 'tally'
                   AND (pg_catalog.pg_get_userbyid(n.nspowner) OPERATOR(pg_catalog.=) CURRENT_USER
                        OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) n.nspowner AND r.rolsuper)))
  THEN
    RAISE EXCEPTION 'schema "tally" belongs to another role'
      USING ERRCODE = '42501',
            HINT = 'ALTER SCHEMA tally OWNER TO a superuser, or drop the schema, and run CREATE EXTENSION tally again.';
  END IF;
END
$$;
GRANT USAGE ON SCHEMA tally TO PUBLIC;
COMMENT ON SCHEMA tally IS 'objects of the extension tally: rollups, sketches, partitions and their jobs';
