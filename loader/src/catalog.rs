//! What PostgreSQL says about the target: its columns, its leaves, and the fingerprint that proves inside a transaction that
//! nothing of it has changed.

use tokio_postgres::Client;
use tokio_postgres::types::{FromSql, Type};

/// The target table as the catalog describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Qualified and quoted.
    pub name: String,
    /// The name alone, not quoted.
    pub relation: String,
    pub oid: u32,
    pub columns: Vec<TableColumn>,
    pub fingerprint: i64,
    /// The enums of the columns, whose labels the fingerprint covers.
    pub enums: Vec<u32>,
    pub leaves: Leaves,
    /// A row may have to wait for another transaction that has an equal key.
    pub is_unique: bool,
    /// Things that make every COPY slow, for `check`.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableColumn {
    pub name: String,
    /// As declared, for messages: `numeric(10,2)`.
    pub declared: String,
    /// Name of the type in `pg_catalog`, domains resolved to their base; another schema's type has its schema in front. For an
    /// array it is that of the elements.
    pub base: String,
    pub typmod: i32,
    /// The labels, if that type is an enum.
    pub labels: Vec<String>,
    /// For an array the type of its elements, which may be a domain.
    pub element: Option<u32>,
    pub not_null: bool,
    pub default: TableDefault,
}

/// What PostgreSQL does with a column that a row leaves out.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TableDefault {
    #[default]
    None,
    /// A constant: it can be written for each row that lacks the value.
    Constant {
        /// The expression.
        text: String,
        /// Its value in binary form; empty when the type has none.
        bytes: Vec<u8>,
        /// Its value as text.
        input: String,
    },
    /// Computed (`nextval`, `now()`, ..): only PostgreSQL can do it.
    Computed(String),
    Identity,
    Generated,
}

/// Which values of the partition key find a leaf.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Leaves {
    /// Not partitioned, or not in a way that can be checked here: PostgreSQL decides.
    #[default]
    Unknown,
    Range(RangeLeaves),
}

/// The ranges of a table partitioned BY RANGE over one column, in the representation of the column (microseconds since 2000
/// for times).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeLeaves {
    pub column: String,
    /// Sorted, half open, adjoining ranges joined.
    ranges: Vec<(i64, i64)>,
    /// Ranges before joining.
    pub count: usize,
}

impl RangeLeaves {
    /// Joins the ranges of the leaves; their order does not matter.
    pub fn new(column: String, mut ranges: Vec<(i64, i64)>) -> Self {
        let count = ranges.len();
        ranges.sort_unstable();
        let mut joined: Vec<(i64, i64)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match joined.last_mut() {
                Some(last) if last.1 >= from => last.1 = last.1.max(to),
                _ => joined.push((from, to)),
            }
        }
        Self { column, ranges: joined, count }
    }

    pub fn accepts(&self, value: i64) -> bool {
        let after = self.ranges.partition_point(|range| range.0 <= value);
        after > 0 && value < self.ranges[after - 1].1
    }

    /// The joined ranges, for `check`.
    pub fn ranges(&self) -> &[(i64, i64)] {
        &self.ranges
    }
}

/// Why the target cannot be read, or cannot be a target.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{0}")]
    Unfit(String, Option<&'static str>),
}

/// A 64-bit hash over all that COPY relies on. `$1` is the table's oid; `$2` are the oids of its enums, whose labels may change
/// while the table's own columns stay as they are.
pub const FINGERPRINT: &str = "SELECT pg_catalog.hashtextextended(pg_catalog.concat( \
     (SELECT pg_catalog.string_agg(pg_catalog.format('%s:%s:%s:%s:%s:%s:%s', a.attnum, a.attname, a.atttypid, a.atttypmod, \
                                   a.attnotnull, a.attgenerated, a.attidentity), ',' ORDER BY a.attnum) \
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped), \
     (SELECT pg_catalog.string_agg(pg_catalog.format('%s:%L', e.enumtypid, e.enumlabel), ',' ORDER BY e.enumtypid, e.enumsortorder) \
        FROM pg_catalog.pg_enum e WHERE e.enumtypid = ANY ($2))), 0)";

const RELATION: &str = "\
SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind::text, c.relpersistence::text,
       pg_catalog.row_security_active(c.oid),
       (SELECT string_agg(t.tgname, ', ') FROM pg_catalog.pg_trigger t
         WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgtype & 7 = 7) AS before_triggers, c.relname::text,
       EXISTS (SELECT FROM pg_catalog.pg_index i WHERE (i.indisunique OR i.indisexclusion) AND (i.indrelid = c.oid
               OR i.indrelid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) AS p)))
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = pg_catalog.to_regclass($1)";

/// Each step goes from a domain to its base, or from an array to its elements, but from those to no array again: nested JSON
/// arrays could not tell them from dimensions. What has no step left is the type that is written. A column without a default of its own has that of
/// its domain.
const COLUMNS: &str = "\
WITH RECURSIVE base AS (
  SELECT a.attnum, a.atttypid AS typid, a.atttypmod AS typmod, NULL::oid AS element
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT b.attnum, CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE e.oid END,
         CASE WHEN b.typmod = -1 THEN t.typtypmod ELSE b.typmod END, coalesce(b.element, CASE WHEN t.typtype <> 'd' THEN e.oid END)
    FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typid
    LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
   WHERE t.typtype = 'd' OR (e.oid IS NOT NULL AND b.element IS NULL))
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod),
       CASE WHEN n.nspname = 'pg_catalog' THEN t.typname::text ELSE pg_catalog.format('%I.%I', n.nspname, t.typname) END,
       b.typmod, a.attnotnull, a.attidentity::text, a.attgenerated::text,
       pg_catalog.pg_get_expr(coalesce(d.adbin, o.typdefaultbin), a.attrelid), coalesce(d.adbin, o.typdefaultbin)::text LIKE '{CONST %', b.element, t.oid, t.typsend::oid <> 0,
       ARRAY(SELECT l.enumlabel::text FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid ORDER BY l.enumsortorder)
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_type o ON o.oid = a.atttypid
  JOIN base b ON b.attnum = a.attnum
  JOIN pg_catalog.pg_type t ON t.oid = b.typid AND t.typtype <> 'd'
   AND (b.element IS NOT NULL OR NOT EXISTS (SELECT FROM pg_catalog.pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid))
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = $1 ORDER BY a.attnum";

const PARTITION_KEY: &str = "\
SELECT p.partstrat::text, p.partnatts, a.attname::text, t.typname::text, p.partdefid <> 0
  FROM pg_catalog.pg_partitioned_table p
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0] AND p.partattrs[0] <> 0
  LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid AND t.typnamespace = 'pg_catalog'::pg_catalog.regnamespace
 WHERE p.partrelid = $1";

/// Bounds are text in the catalog's own syntax: `FOR VALUES FROM ('..') TO (MAXVALUE)`. The session's zone is UTC and its
/// DateStyle ISO, so times cast back exactly. `{}` is the type of the key.
const BOUNDS: &str = "\
SELECT NULLIF(pg_catalog.btrim((b.bound)[1], ''''), 'MINVALUE')::{}, NULLIF(pg_catalog.btrim((b.bound)[2], ''''), 'MAXVALUE')::{}
  FROM (SELECT pg_catalog.regexp_match(pg_catalog.pg_get_expr(c.relpartbound, c.oid),
                                       $re$^FOR VALUES FROM \\((.*)\\) TO \\((.*)\\)$$re$) AS bound
          FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = $1 AND NOT i.inhdetachpending) b
 WHERE b.bound IS NOT NULL";

/// A value of any type, as its binary form.
#[derive(Debug)]
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(bytes.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// The value of an integer or a time, read from its binary form of 2, 4 or 8 bytes.
pub fn integer(bytes: &[u8]) -> Option<i64> {
    match bytes.len() {
        2 => Some(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        4 => Some(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        8 => Some(i64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// Reads the target named as in SQL. No transaction may be open.
///
/// All of it comes from one snapshot: a change between the columns and their fingerprint would never be noticed.
pub async fn table(client: &Client, name: &str) -> Result<Table, CatalogError> {
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let table = read_table(client, name).await;
    let ended = client.batch_execute("ROLLBACK").await;
    let table = table?;
    ended?;
    Ok(table)
}

async fn read_table(client: &Client, name: &str) -> Result<Table, CatalogError> {
    let Some(relation) = client.query_opt(RELATION, &[&name]).await? else {
        return Err(CatalogError::Unfit(
            format!("target.table: there is no relation \"{name}\""),
            Some("Write the name as in SQL, with its schema: \"public.events\"."),
        ));
    };
    let (oid, qualified): (u32, String) = (relation.get(0), relation.get(1));
    let refuse = |what: String, hint| Err(CatalogError::Unfit(format!("target.table: {qualified} {what}"), Some(hint)));
    match (relation.get::<_, &str>(2), relation.get::<_, &str>(3)) {
        ("r" | "p", "p") => {}
        ("r" | "p", _) => {
            // A crash empties such a table but not the positions: the rows would be lost without a trace.
            return refuse(
                "is unlogged or temporary".into(),
                "Use a table that survives a crash (ALTER TABLE .. SET LOGGED).",
            );
        }
        (kind, _) => {
            return refuse(format!("is no table (relkind \"{kind}\")"), "Name a plain or a partitioned table.");
        }
    }
    if relation.get(4) {
        return refuse(
            "has row-level security for this role".into(),
            "PostgreSQL cannot COPY into it; load as the owner of the table, or as a role with BYPASSRLS.",
        );
    }
    let mut warnings = Vec::new();
    if let Some(triggers) = relation.get::<_, Option<String>>(5) {
        warnings.push(format!("BEFORE row triggers ({triggers}) make PostgreSQL insert row by row"));
    }
    let mut columns = Vec::new();
    let mut enums: Vec<u32> = Vec::new();
    for row in client.query(COLUMNS, &[&oid]).await? {
        let expression: Option<String> = row.get(7);
        let default = match (row.get::<_, &str>(5), row.get::<_, &str>(6), expression) {
            (_, "s" | "v", _) => TableDefault::Generated,
            ("a" | "d", _, _) => TableDefault::Identity,
            (_, _, None) => TableDefault::None,
            (_, _, Some(text)) if row.get(8) => constant(client, text, row.get(11)).await?,
            (_, _, Some(text)) => TableDefault::Computed(text),
        };
        let labels: Vec<String> = row.get(12);
        if !labels.is_empty() {
            enums.push(row.get(10));
        }
        columns.push(TableColumn {
            name: row.get(0),
            declared: row.get(1),
            base: row.get(2),
            typmod: row.get(3),
            labels,
            element: row.get(9),
            not_null: row.get(4),
            default,
        });
    }
    let fingerprint = client.query_one(FINGERPRINT, &[&oid, &enums]).await?.get::<_, Option<i64>>(0).unwrap_or(0);
    let leaves = leaves(client, oid).await?;
    let (relation, is_unique) = (relation.get(6), relation.get(7));
    Ok(Table { name: qualified, relation, oid, columns, fingerprint, enums, leaves, is_unique, warnings })
}

/// The value of a constant default. The text is the catalog's own, printed by PostgreSQL.
async fn constant(client: &Client, text: String, has_bytes: bool) -> Result<TableDefault, tokio_postgres::Error> {
    let printed = client.query_one(&format!("SELECT ({text})::pg_catalog.text"), &[]).await?;
    let Some(input) = printed.get(0) else { return Ok(TableDefault::None) };
    let bytes = match has_bytes {
        true => client.query_one(&format!("SELECT {text}"), &[]).await?.get::<_, Raw>(0).0,
        false => Vec::new(),
    };
    Ok(TableDefault::Constant { text, bytes, input })
}

/// Reads which values of the partition key find a leaf.
pub async fn leaves(client: &Client, oid: u32) -> Result<Leaves, tokio_postgres::Error> {
    let Some(key) = client.query_opt(PARTITION_KEY, &[&oid]).await? else { return Ok(Leaves::Unknown) };
    let (strategy, columns, default): (&str, i16, bool) = (key.get(0), key.get(1), key.get(4));
    let (Some(column), Some(kind)) = (key.get::<_, Option<String>>(2), key.get::<_, Option<&str>>(3)) else {
        return Ok(Leaves::Unknown); // an expression, or a type of our own
    };
    if strategy != "r" || columns != 1 || default {
        return Ok(Leaves::Unknown);
    }
    if !matches!(kind, "timestamptz" | "timestamp" | "date" | "int2" | "int4" | "int8") {
        return Ok(Leaves::Unknown);
    }
    // The binary form is what COPY writes, so that a check costs no conversion.
    let mut ranges = Vec::new();
    for bound in client.query(&BOUNDS.replace("{}", kind), &[&oid]).await? {
        let value = |index| bound.get::<_, Option<Raw>>(index).and_then(|raw| integer(&raw.0));
        ranges.push((value(0).unwrap_or(i64::MIN), value(1).unwrap_or(i64::MAX)));
    }
    Ok(Leaves::Range(RangeLeaves::new(column, ranges)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_are_half_open() {
        let leaves = RangeLeaves::new("t".into(), vec![(20, 30), (0, 10), (10, 20), (50, 60)]);
        assert_eq!(leaves.ranges(), [(0, 30), (50, 60)]);
        assert_eq!(leaves.count, 4);
        for (value, accepted) in [(-1, false), (0, true), (29, true), (30, false), (49, false), (50, true), (60, false)]
        {
            assert_eq!(leaves.accepts(value), accepted, "{value}");
        }
        assert!(!RangeLeaves::new("t".into(), vec![]).accepts(0));
    }
}
