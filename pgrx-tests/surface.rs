//! What a DBA sees of the extension is complete: comments, settings, privileges. Names that start with `_` are internal.

mod privileges;

use postgres::Client;
use tally_server_tests::cluster;

/// The objects that belong to the extension, with type, name and full identity.
const MEMBERS: &str = "
    WITH member AS (
      SELECT d.classid, d.objid, i.type, i.name, i.identity
      FROM pg_extension e
      JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
      CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) i
      WHERE e.extname = 'tally'
    ), public_relation AS (
      SELECT c.oid, c.relname, c.relkind
      FROM member m
      JOIN pg_class c ON (m.classid, m.objid) IN (('pg_class'::regclass, c.oid), ('pg_type'::regclass, c.reltype))
      WHERE c.relname NOT LIKE '\\_%'
    )";

/// The values of the first column of a query over [`MEMBERS`].
fn found(session: &mut Client, query: &str) -> Vec<String> {
    let rows = session.query(&format!("{MEMBERS} {query}"), &[]).unwrap();
    rows.iter().map(|row| row.get::<_, String>(0)).collect()
}

#[track_caller]
fn assert_none(query: &str) {
    assert_eq!(found(&mut cluster::database().connect(), query), Vec::<String>::new());
}

#[test]
fn every_public_object_has_a_comment() {
    assert_none(
        // An operator's name may start with anything, and so may the identity of what has no name (a cast).
        "SELECT type || ' ' || identity FROM member
         WHERE coalesce(name, '') NOT LIKE '\\_%' AND identity NOT LIKE 'tally.\\_%'
           AND coalesce(obj_description(objid, classid::regclass::text), '') = ''
           -- the sequence of an identity column has no life of its own
           AND NOT EXISTS (SELECT FROM pg_depend d WHERE (d.classid, d.objid) = (member.classid, member.objid) AND d.deptype = 'i')",
    );
}

#[test]
fn every_column_of_a_public_table_or_view_has_a_comment() {
    assert_none(
        "SELECT r.relname || '.' || a.attname FROM public_relation r
         JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE r.relkind IN ('r', 'p', 'v', 'm', 'c') AND a.attname NOT LIKE '\\_%'
           AND coalesce(col_description(r.oid, a.attnum), '') = ''",
    );
}

#[test]
fn internal_functions_are_revoked_from_public() {
    // Whoever owns a table creates its triggers, and needs the right for it. PostgreSQL itself refuses to call a trigger
    // function in any other way. The named ones are run by the event triggers, as whoever runs the DDL, aggregates and
    // what merges their values by whoever reads a rollup; those of states by aggregates, with the rights of their owners. Others
    // say what function of SQL they are a part of.
    assert_none(
        "SELECT identity FROM member JOIN pg_proc p ON classid = 'pg_proc'::regclass AND objid = p.oid
         WHERE p.proname LIKE '\\_%' AND has_function_privilege('public', objid, 'EXECUTE')
           AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
           AND p.prokind <> 'a'
           AND p.proname NOT IN ('_earlier', '_later', '_follow_attach', '_follow_tables', '_protect_partition', '_forget_dropped',
             '_pack_state', '_unite_states')
           AND obj_description(objid, 'pg_proc') NOT LIKE 'what % is made of'",
    );
}

#[test]
fn no_function_runs_with_the_rights_of_its_owner() {
    assert_none(
        "SELECT identity FROM member JOIN pg_proc p ON classid = 'pg_proc'::regclass AND objid = p.oid WHERE p.prosecdef",
    );
}

#[test]
fn no_function_depends_on_the_search_path_of_its_caller() {
    assert_none(
        // A body that was parsed when the function was created (BEGIN ATOMIC) has its names resolved. A procedure with a
        // SET clause could not COMMIT; it qualifies its names instead.
        "SELECT identity FROM member JOIN pg_proc p ON classid = 'pg_proc'::regclass AND objid = p.oid
         JOIN pg_language l ON l.oid = p.prolang AND l.lanname IN ('sql', 'plpgsql')
         WHERE p.prosqlbody IS NULL AND p.prokind <> 'p' AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}'))",
    );
}

#[test]
fn public_may_write_no_table_of_the_extension() {
    assert_none(
        "SELECT identity FROM member
         WHERE classid = 'pg_class'::regclass AND type IN ('table', 'view')
           AND has_table_privilege('public', objid, 'INSERT, UPDATE, DELETE, TRUNCATE')",
    );
}

#[test]
fn nothing_lives_outside_the_schema_of_the_extension() {
    assert_none(
        "SELECT type || ' ' || identity FROM member
         WHERE identity NOT LIKE '%tally.%' AND (type, identity) <> ('schema', 'tally_trash') AND type NOT IN ('cast', 'event trigger', 'access method')",
    );
}

#[test]
fn every_setting_has_a_description_and_a_line_in_the_documentation() {
    // What follows the table may speak about settings too; a line of the table starts with a name.
    let page = include_str!("../docs/settings.md");
    let mut documented: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `tally."))
        .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).skip(1).take(3).collect())
        .collect();
    documented.sort();

    let database = cluster::database();
    let mut session = database.connect();
    let settings = session
        .query(
            "SELECT name, current_setting(name), context, short_desc FROM pg_settings WHERE name LIKE 'tally.%' ORDER BY name",
            &[],
        )
        .unwrap();
    let defined: Vec<Vec<&str>> = settings.iter().map(|row| (0..3).map(|column| row.get(column)).collect()).collect();
    assert_eq!(documented, defined, "name, default and context in docs/settings.md are those of pg_settings");
    for setting in &settings {
        let (name, description): (&str, &str) = (setting.get(0), setting.get(3));
        assert!(description.ends_with('.') && description.contains(' '), "{name} has no sentence: {description:?}");
    }
}
