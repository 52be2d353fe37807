//! The statements that make one partition. A new partition is created `LIKE` the parent and attached last: ATTACH takes
//! SHARE UPDATE EXCLUSIVE on the parent, so no INSERT and no SELECT waits, where `CREATE TABLE .. PARTITION OF` takes
//! ACCESS EXCLUSIVE. In between it gets what LIKE leaves out, from the newest partition.

use crate::bucket::{DAY, HOUR, MINUTE, Timestamp};
use crate::ident::{QualifiedName, fit, literal, quote};
use crate::partition::check::Request;
use crate::partition::{Interval, Key, Range};

/// What a new partition gets besides its columns, constraints and indexes.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub tablespace: Option<String>,
    pub access_method: Option<String>,
    pub unlogged: bool,
    /// Storage parameters as `name = value`; those of the TOAST table begin with `toast.`.
    pub storage: Vec<(String, String)>,
    /// Statistics target by column.
    pub statistics: Vec<(String, i32)>,
    /// Options by column, such as `n_distinct`.
    pub column_options: Vec<(String, String, String)>,
    pub grants: Vec<Grant>,
    /// Roles that default privileges give rights to, which the set's partitions may not have; `None` is PUBLIC.
    pub revoked: Vec<Option<String>>,
    pub row_security: bool,
    pub force_row_security: bool,
    pub policies: Vec<RowPolicy>,
    pub replica_identity: ReplicaIdentity,
    pub publications: Vec<Publication>,
    /// The owner, where the statements are run by somebody else.
    pub owner: Option<String>,
}

/// One privilege for one role; `None` is PUBLIC.
#[derive(Clone, Debug)]
pub struct Grant {
    pub column: Option<String>,
    pub grantee: Option<String>,
    pub privilege: String,
    pub grantable: bool,
}

/// A policy of row level security; the expressions are SQL that PostgreSQL printed.
#[derive(Clone, Debug)]
pub struct RowPolicy {
    pub name: String,
    pub permissive: bool,
    pub command: String,
    pub roles: Vec<Option<String>>,
    pub using: Option<String>,
    pub check: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub enum ReplicaIdentity {
    #[default]
    Default,
    Full,
    Nothing,
    /// The partition of this index of the parent.
    Index(QualifiedName),
}

/// A publication that names the newest partition itself.
#[derive(Clone, Debug)]
pub struct Publication {
    pub name: String,
    pub columns: Vec<String>,
    pub filter: Option<String>,
}

/// One step, to be run or to be read by an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub action: &'static str,
    pub sql: String,
    /// The strongest lock on a table that others use; the new table is nobody else's.
    pub lock_mode: Option<&'static str>,
}

/// The name of a new partition: the parent's and the lower bound in UTC, the time of day only if bounds have one. No code finds a
/// partition by its name. `taken` says whether a name is in use.
pub fn name(parent: &str, lower: Timestamp, with_time: bool, taken: &mut dyn FnMut(&str) -> bool) -> String {
    let (year, month, day) = lower.date().civil();
    let mut suffix = format!("_p{year:04}{month:02}{day:02}");
    if with_time {
        let of_day = lower.0.rem_euclid(DAY);
        suffix.push_str(&format!("t{:02}{:02}", of_day / HOUR, of_day / MINUTE % 60));
    }
    let mut name = fit(parent, &suffix);
    let mut number = 2;
    while taken(&name) {
        name = fit(parent, &format!("{suffix}_{number}"));
        number += 1;
    }
    name
}

/// A bound as a literal that no setting of a session changes the meaning of.
pub fn bound(key: Key, at: Timestamp) -> String {
    match key {
        Key::Instant => format!("'{at}+00'"),
        Key::WallClock => format!("'{at}'"),
        Key::Date => {
            let text = at.to_string();
            format!("'{}'", text.split(' ').next().unwrap_or(&text))
        }
    }
}

/// The call that gives a set this policy. Of a policy that keeps everything it says so if `in_full`, because elsewhere might be another.
pub fn register(table: &str, request: &Request, time_zone: &str, in_full: bool) -> String {
    let Request { width, retention, premake, lateness, far_future, grace, detach_deadline } = request;
    let mut sql = format!(
        "SELECT tally.partition_by_time({}, '{width}', time_zone => {}, lateness => '{lateness}', far_future => '{far_future}', \
         grace => '{grace}', detach_deadline => '{detach_deadline}'",
        literal(table),
        literal(time_zone)
    );
    let nothing = in_full.then(Interval::default);
    for (argument, value) in [("retention", retention.or(nothing)), ("premake", premake.or(nothing))] {
        if let Some(value) = value {
            sql.push_str(&format!(", {argument} => '{value}'"));
        }
    }
    sql + ")"
}

/// The statements up to ATTACH, and after it. In between nothing else is needed.
pub fn make(
    parent: &QualifiedName,
    partition: &QualifiedName,
    key: Key,
    range: Range,
    shape: &Shape,
) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut add = |action, sql, lock_mode| statements.push(Statement { action, sql, lock_mode });
    add("create", create(parent, partition, shape), Some("ACCESS SHARE"));
    if let Some(owner) = &shape.owner {
        add("owner", format!("ALTER TABLE {partition} OWNER TO {}", quote(owner)), None);
    }
    for sql in columns(partition, shape).into_iter().chain(rights(partition, shape)) {
        add("copy", sql, None);
    }
    match shape.replica_identity {
        ReplicaIdentity::Full => add("copy", format!("ALTER TABLE {partition} REPLICA IDENTITY FULL"), None),
        ReplicaIdentity::Nothing => add("copy", format!("ALTER TABLE {partition} REPLICA IDENTITY NOTHING"), None),
        _ => {}
    }
    let (from, to) = (bound(key, range.lower), bound(key, range.upper));
    let attach = format!("ALTER TABLE {parent} ATTACH PARTITION {partition} FOR VALUES FROM ({from}) TO ({to})");
    add("attach", attach, Some("SHARE UPDATE EXCLUSIVE"));
    if let ReplicaIdentity::Index(index) = &shape.replica_identity {
        add("copy", identity_index(partition, index), None);
    }
    for publication in &shape.publications {
        add("publish", publish(partition, publication), None);
    }
    statements
}

fn create(parent: &QualifiedName, partition: &QualifiedName, shape: &Shape) -> String {
    let unlogged = if shape.unlogged { "UNLOGGED " } else { "" };
    let mut sql = format!("CREATE {unlogged}TABLE {partition} (LIKE {parent} INCLUDING ALL EXCLUDING IDENTITY)");
    if let Some(method) = &shape.access_method {
        sql.push_str(&format!(" USING {}", quote(method)));
    }
    if !shape.storage.is_empty() {
        let options: Vec<_> = shape
            .storage
            .iter()
            .map(|(name, value)| match name.split_once('.') {
                Some((namespace, name)) => format!("{}.{} = {}", quote(namespace), quote(name), literal(value)),
                None => format!("{} = {}", quote(name), literal(value)),
            })
            .collect();
        sql.push_str(&format!(" WITH ({})", options.join(", ")));
    }
    if let Some(tablespace) = &shape.tablespace {
        sql.push_str(&format!(" TABLESPACE {}", quote(tablespace)));
    }
    sql
}

/// Statistics targets and options of columns.
pub fn columns(partition: &QualifiedName, shape: &Shape) -> Vec<String> {
    let targets = shape.statistics.iter().map(|(column, target)| {
        format!("ALTER TABLE {partition} ALTER COLUMN {} SET STATISTICS {target}", quote(column))
    });
    let options = shape.column_options.iter().map(|(column, name, value)| {
        format!("ALTER TABLE {partition} ALTER COLUMN {} SET ({} = {})", quote(column), quote(name), literal(value))
    });
    targets.chain(options).collect()
}

/// Grants, then policies before the flags that switch them on.
pub fn rights(partition: &QualifiedName, shape: &Shape) -> Vec<String> {
    let role = |role: &Option<String>| role.as_deref().map_or("PUBLIC".into(), quote);
    let mut statements = Vec::new();
    for revoked in &shape.revoked {
        statements.push(format!("REVOKE ALL ON TABLE {partition} FROM {}", role(revoked)));
    }
    for grant in &shape.grants {
        let columns = grant.column.as_deref().map_or(String::new(), |column| format!(" ({})", quote(column)));
        let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
        let grantee = role(&grant.grantee);
        statements.push(format!("GRANT {}{columns} ON TABLE {partition} TO {grantee}{option}", grant.privilege));
    }
    for policy in &shape.policies {
        let kind = if policy.permissive { "PERMISSIVE" } else { "RESTRICTIVE" };
        let roles: Vec<_> = policy.roles.iter().map(role).collect();
        let mut sql = format!(
            "CREATE POLICY {} ON {partition} AS {kind} FOR {} TO {}",
            quote(&policy.name),
            policy.command,
            roles.join(", ")
        );
        if let Some(using) = &policy.using {
            sql.push_str(&format!(" USING ({using})"));
        }
        if let Some(check) = &policy.check {
            sql.push_str(&format!(" WITH CHECK ({check})"));
        }
        statements.push(sql);
    }
    if shape.row_security {
        statements.push(format!("ALTER TABLE {partition} ENABLE ROW LEVEL SECURITY"));
    }
    if shape.force_row_security {
        statements.push(format!("ALTER TABLE {partition} FORCE ROW LEVEL SECURITY"));
    }
    statements
}

/// PostgreSQL chooses the name of the new index, so it is looked up by its parent after ATTACH.
fn identity_index(partition: &QualifiedName, index: &QualifiedName) -> String {
    let body = format!(
        "BEGIN EXECUTE (SELECT pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', x.indrelid::pg_catalog.regclass, \
         c.relname) FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_index x ON x.indexrelid OPERATOR(pg_catalog.=) i.inhrelid \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid WHERE i.inhparent OPERATOR(pg_catalog.=) \
         {}::pg_catalog.regclass AND x.indrelid OPERATOR(pg_catalog.=) {}::pg_catalog.regclass); END",
        literal(&index.to_string()),
        literal(&partition.to_string())
    );
    format!("DO {}", literal(&body))
}

fn publish(partition: &QualifiedName, publication: &Publication) -> String {
    let mut sql = format!("ALTER PUBLICATION {} ADD TABLE {partition}", quote(&publication.name));
    if !publication.columns.is_empty() {
        let columns: Vec<_> = publication.columns.iter().map(|column| quote(column)).collect();
        sql.push_str(&format!(" ({})", columns.join(", ")));
    }
    if let Some(filter) = &publication.filter {
        sql.push_str(&format!(" WHERE ({filter})"));
    }
    sql
}
