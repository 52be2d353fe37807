//! What a new partition copies from the newest one (or from the parent, where there is none yet), because LIKE leaves it out.

use super::facts::{Facts, flag, rows, text};
use crate::error::Result;
use crate::pg::Oid;
use tally_core::ident::QualifiedName;
use tally_core::partition::sql::{Grant, Publication, ReplicaIdentity, RowPolicy, Shape};

/// Reads the shape of the set's next partition.
pub(super) fn read(facts: &Facts) -> Result<Shape> {
    let newest = facts.bounds.last().map(|bounds| bounds.partition);
    read_from(facts, newest)
}

/// Reads the shape of the parent itself.
pub(super) fn read_parent(facts: &Facts) -> Result<Shape> {
    read_from(facts, None)
}

fn read_from(facts: &Facts, newest: Option<Oid>) -> Result<Shape> {
    let template = newest.unwrap_or(facts.oid);
    let mut shape = storage(facts.oid, newest)?;
    shape.storage = options(template)?;
    shape.statistics = rows(
        "SELECT a.attname::text, a.attstattarget::pg_catalog.int4 FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
           AND a.attstattarget OPERATOR(pg_catalog.>=) 0 ORDER BY a.attnum",
        &[template.into()],
        |row| Ok((text(row, 1)?, row.get::<i32>(2)?.unwrap_or(-1))),
    )?;
    // By name, because PostgreSQL keeps notes of its own there too (pg_attver, since 15.19 or 15.20).
    shape.column_options = rows(
        "SELECT a.attname::text, o.option_name, o.option_value FROM pg_catalog.pg_attribute a \
         CROSS JOIN LATERAL pg_catalog.pg_options_to_table(a.attoptions) o \
         WHERE o.option_name OPERATOR(pg_catalog.=) ANY (ARRAY['n_distinct', 'n_distinct_inherited']) AND a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped ORDER BY a.attnum",
        &[template.into()],
        |row| Ok((text(row, 1)?, text(row, 2)?, text(row, 3)?)),
    )?;
    shape.revoked = revoked(facts.oid)?;
    shape.grants = grants(template, !shape.revoked.is_empty())?;
    shape.policies = policies(template)?;
    shape.replica_identity = replica_identity(template)?;
    shape.publications = publications(template, facts.owner)?;
    Ok(shape)
}

/// Tablespace and access method are the parent's, else the newest partition's; the rest is the template's.
fn storage(parent: Oid, newest: Option<Oid>) -> Result<Shape> {
    let found = rows(
        "SELECT s.spcname::text, m.amname::text, t.relpersistence OPERATOR(pg_catalog.=) 'u', t.relrowsecurity, t.relforcerowsecurity \
         FROM pg_catalog.pg_class p \
         JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) COALESCE($2, $1) \
         LEFT JOIN pg_catalog.pg_tablespace s ON s.oid OPERATOR(pg_catalog.=) \
           CASE WHEN p.reltablespace OPERATOR(pg_catalog.<>) 0::pg_catalog.oid THEN p.reltablespace ELSE t.reltablespace END \
         LEFT JOIN pg_catalog.pg_am m ON m.oid OPERATOR(pg_catalog.=) \
           CASE WHEN p.relam OPERATOR(pg_catalog.<>) 0::pg_catalog.oid THEN p.relam ELSE t.relam END \
         WHERE p.oid OPERATOR(pg_catalog.=) $1",
        &[parent.into(), newest.into()],
        |row| {
            Ok(Shape {
                tablespace: row.get(1)?,
                access_method: row.get(2)?,
                unlogged: flag(row, 3)?,
                row_security: flag(row, 4)?,
                force_row_security: flag(row, 5)?,
                ..Shape::default()
            })
        },
    )?;
    Ok(found.into_iter().next().unwrap_or_default())
}

fn options(template: Oid) -> Result<Vec<(String, String)>> {
    rows(
        "SELECT o.prefix OPERATOR(pg_catalog.||) v.option_name, v.option_value \
         FROM pg_catalog.pg_class c \
         LEFT JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) c.reltoastrelid \
         CROSS JOIN LATERAL (VALUES (''::pg_catalog.text, c.reloptions), ('toast.', t.reloptions)) AS o (prefix, options) \
         CROSS JOIN LATERAL pg_catalog.pg_options_to_table(o.options) v \
         WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[template.into()],
        |row| Ok((text(row, 1)?, text(row, 2)?)),
    )
}

/// Default privileges of the owner would give a new table rights that the set's partitions do not have.
fn revoked(parent: Oid) -> Result<Vec<Option<String>>> {
    rows(
        "SELECT DISTINCT CASE WHEN x.grantee OPERATOR(pg_catalog.<>) 0::pg_catalog.oid \
                              THEN pg_catalog.pg_get_userbyid(x.grantee)::text END \
         FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_default_acl d ON d.defaclrole OPERATOR(pg_catalog.=) c.relowner \
          AND d.defaclobjtype OPERATOR(pg_catalog.=) 'r' \
          AND (d.defaclnamespace OPERATOR(pg_catalog.=) 0::pg_catalog.oid \
               OR d.defaclnamespace OPERATOR(pg_catalog.=) c.relnamespace) \
         CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) x \
         WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[parent.into()],
        |row| row.get::<String>(1),
    )
}

/// The owner's own rights are there anyway, unless default privileges have changed them.
fn grants(template: Oid, with_owner: bool) -> Result<Vec<Grant>> {
    rows(
        "SELECT g.column_name, CASE WHEN x.grantee OPERATOR(pg_catalog.<>) 0::pg_catalog.oid \
                                    THEN pg_catalog.pg_get_userbyid(x.grantee)::text END, x.privilege_type, x.is_grantable \
         FROM pg_catalog.pg_class c \
         CROSS JOIN LATERAL ( \
           SELECT NULL::pg_catalog.text, 0::pg_catalog.int2, \
                  COALESCE(c.relacl, pg_catalog.acldefault('r', c.relowner)) \
           UNION ALL \
           SELECT a.attname::text, a.attnum, a.attacl FROM pg_catalog.pg_attribute a \
           WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND NOT a.attisdropped AND a.attnum OPERATOR(pg_catalog.>) 0 \
         ) AS g (column_name, place, acl) \
         CROSS JOIN LATERAL pg_catalog.aclexplode(g.acl) x \
         WHERE c.oid OPERATOR(pg_catalog.=) $1 AND ($2 OR x.grantee OPERATOR(pg_catalog.<>) c.relowner) \
         ORDER BY g.place, 2, 3",
        &[template.into(), with_owner.into()],
        |row| {
            Ok(Grant { column: row.get(1)?, grantee: row.get(2)?, privilege: text(row, 3)?, grantable: flag(row, 4)? })
        },
    )
}

fn policies(template: Oid) -> Result<Vec<RowPolicy>> {
    rows(
        "SELECT p.polname::text, p.polpermissive, \
                CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, \
                ARRAY(SELECT CASE WHEN r.oid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid THEN pg_catalog.pg_get_userbyid(r.oid)::text END \
                      FROM pg_catalog.unnest(p.polroles) AS r (oid)), \
                pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) \
         FROM pg_catalog.pg_policy p WHERE p.polrelid OPERATOR(pg_catalog.=) $1 ORDER BY p.polname",
        &[template.into()],
        |row| {
            Ok(RowPolicy {
                name: text(row, 1)?,
                permissive: flag(row, 2)?,
                command: text(row, 3)?,
                roles: row.get::<Vec<Option<String>>>(4)?.unwrap_or_default(),
                using: row.get(5)?,
                check: row.get(6)?,
            })
        },
    )
}

/// An index is found again in the new partition by the parent's index that it belongs to. One that only the newest partition has
/// cannot be, and leaves the default.
fn replica_identity(template: Oid) -> Result<ReplicaIdentity> {
    let found = rows(
        "SELECT c.relreplident::text, n.nspname::text, i.relname::text \
         FROM pg_catalog.pg_class c \
         LEFT JOIN pg_catalog.pg_index x ON x.indrelid OPERATOR(pg_catalog.=) c.oid AND x.indisreplident \
         LEFT JOIN pg_catalog.pg_inherits h ON h.inhrelid OPERATOR(pg_catalog.=) x.indexrelid \
         LEFT JOIN pg_catalog.pg_class i ON i.oid OPERATOR(pg_catalog.=) \
           CASE c.relkind WHEN 'p' THEN x.indexrelid ELSE h.inhparent END \
         LEFT JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) i.relnamespace \
         WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[template.into()],
        |row| {
            Ok(match (text(row, 1)?.as_str(), row.get::<String>(2)?, row.get::<String>(3)?) {
                ("f", ..) => ReplicaIdentity::Full,
                ("n", ..) => ReplicaIdentity::Nothing,
                ("i", Some(schema), Some(index)) => ReplicaIdentity::Index(QualifiedName::new(schema, index)),
                _ => ReplicaIdentity::Default,
            })
        },
    )?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// Only publications that the owner of the table may change.
fn publications(template: Oid, owner: Oid) -> Result<Vec<Publication>> {
    rows(
        "SELECT p.pubname::text, \
                ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(r.prattrs::pg_catalog.int2[]) AS k (attribute) \
                      JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) r.prrelid \
                                                    AND a.attnum OPERATOR(pg_catalog.=) k.attribute), \
                pg_catalog.pg_get_expr(r.prqual, r.prrelid) \
         FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid OPERATOR(pg_catalog.=) r.prpubid \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.prrelid \
         WHERE r.prrelid OPERATOR(pg_catalog.=) $1 AND c.relkind OPERATOR(pg_catalog.=) 'r' \
           AND pg_catalog.pg_has_role($2, p.pubowner, 'USAGE') ORDER BY p.pubname",
        &[template.into(), owner.into()],
        |row| Ok(Publication { name: text(row, 1)?, columns: row.get(2)?.unwrap_or_default(), filter: row.get(3)? }),
    )
}
