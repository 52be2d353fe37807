//! May this table be a partition set, and is what the owner asks for allowed?

use crate::bucket::{DAY, Timestamp, Width};
use crate::partition::{Error, Interval, Key, Policy};

/// What the catalogs say about a table. Names are written as in SQL, quoted where needed.
#[derive(Clone, Debug)]
pub struct Set {
    pub table: String,
    /// `pg_class.relkind`
    pub kind: char,
    /// `pg_class.relpersistence`
    pub persistence: char,
    pub is_partition: bool,
    /// `pg_partitioned_table.partstrat`, where it is partitioned.
    pub strategy: Option<char>,
    /// The columns of its key; `None` for an expression.
    pub key: Vec<Option<KeyColumn>>,
    pub default: Option<String>,
    /// At least those that are no plain tables, and the last one.
    pub members: Vec<Member>,
    pub schema: String,
    pub owner: String,
    pub owner_may_create: bool,
    pub owner_may_log_in: bool,
}

#[derive(Clone, Debug)]
pub struct KeyColumn {
    pub name: String,
    pub type_oid: u32,
    pub type_name: String,
    pub not_null: bool,
    pub default_order: bool,
}

/// A partition, in order of time.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    /// `pg_class.relkind`
    pub kind: char,
    pub upper: Timestamp,
}

const TIMESTAMPTZ: u32 = 1184;
const TIMESTAMP: u32 = 1114;
const DATE: u32 = 1082;

/// The rules for the table, in the order in which their errors help most.
pub fn set(set: &Set) -> Result<Key, Error> {
    let table = || set.table.clone();
    if set.kind != 'p' {
        return Err(if set.kind == 'r' {
            Error::NotPartitioned { table: table() }
        } else {
            Error::NotATable { table: table() }
        });
    }
    if set.persistence == 't' {
        return Err(Error::Temporary { table: table() });
    }
    if set.is_partition {
        return Err(Error::IsPartition { table: table() });
    }
    match set.strategy {
        Some('r') => {}
        Some('l') => return Err(Error::NotByRange { table: table(), strategy: "list" }),
        _ => return Err(Error::NotByRange { table: table(), strategy: "hash" }),
    }
    let [column] = set.key.as_slice() else {
        return Err(Error::SeveralColumns { table: table(), columns: set.key.len() });
    };
    let Some(column) = column else { return Err(Error::KeyIsExpression { table: table() }) };
    let Some(key) = key(column) else {
        return Err(Error::KeyType { column: column.name.clone(), type_name: column.type_name.clone() });
    };
    if !column.default_order {
        return Err(Error::KeyOrder { column: column.name.clone() });
    }
    if !column.not_null {
        return Err(Error::KeyNullable { table: table(), column: column.name.clone() });
    }
    if let Some(partition) = &set.default {
        return Err(Error::DefaultPartition { table: table(), partition: partition.clone() });
    }
    for member in &set.members {
        match member.kind {
            'r' => {}
            'p' => return Err(Error::SubPartitioned { partition: member.name.clone() }),
            _ => return Err(Error::ForeignPartition { partition: member.name.clone() }),
        }
    }
    if let Some(last) = set.members.last()
        && last.upper == Timestamp::INFINITY
    {
        return Err(Error::LastIsMaxvalue { table: table(), partition: last.name.clone() });
    }
    owner(set)?;
    Ok(key)
}

/// What kind of key a column is, if it can be one.
pub fn key(column: &KeyColumn) -> Option<Key> {
    match column.type_oid {
        TIMESTAMPTZ => Some(Key::Instant),
        TIMESTAMP => Some(Key::WallClock),
        DATE => Some(Key::Date),
        _ => None,
    }
}

/// What the owner needs for the partitions to be made in its name.
pub fn owner(set: &Set) -> Result<(), Error> {
    if !set.owner_may_create {
        return Err(Error::OwnerCannotCreate { owner: set.owner.clone(), schema: set.schema.clone() });
    }
    if !set.owner_may_log_in {
        return Err(Error::OwnerCannotLogIn { owner: set.owner.clone() });
    }
    Ok(())
}

/// The arguments of a registration as the caller gave them; what is `None` may come from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments {
    pub width: Option<Interval>,
    pub retention: Option<Interval>,
    pub premake: Option<Interval>,
    pub lateness: Interval,
    pub far_future: Interval,
    pub grace: Interval,
    pub detach_deadline: Interval,
}

impl Arguments {
    /// What is asked for, if the width is this.
    pub fn with_width(&self, width: Interval) -> Request {
        let Self { retention, premake, lateness, far_future, grace, detach_deadline, .. } = *self;
        let retention = retention.and_then(unless_zero);
        Request { width, retention, premake, lateness, far_future, grace, detach_deadline }
    }
}

/// A retention of zero keeps everything, as none does.
pub fn unless_zero(retention: Interval) -> Option<Interval> {
    (retention != Interval::default()).then_some(retention)
}

/// The arguments of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub width: Interval,
    pub retention: Option<Interval>,
    /// `None`: automatic.
    pub premake: Option<Interval>,
    pub lateness: Interval,
    pub far_future: Interval,
    pub grace: Interval,
    pub detach_deadline: Interval,
}

/// The rules for the arguments.
pub fn policy(key: Key, request: &Request) -> Result<Policy, Error> {
    let Interval { months, days, microseconds } = request.width;
    let width = Width::from_interval(months, days, microseconds).ok_or(Error::Width { width: request.width })?;
    if key == Key::Date && width.longest() < DAY {
        return Err(Error::DateWidth { width: request.width });
    }
    let length = |argument, value: Interval| match value.length() {
        length if value.months >= 0 && value.days >= 0 && value.microseconds >= 0 => Ok(length),
        _ => Err(Error::Negative { argument, value }),
    };
    let lateness = length("lateness", request.lateness)?;
    if let Some(retention) = request.retention
        && length("retention", retention)? < lateness
    {
        return Err(Error::RetentionBelowLateness { retention, lateness: request.lateness });
    }
    Ok(Policy {
        key,
        width,
        premake: length("premake", request.premake.unwrap_or_default())?,
        lateness,
        far_future: length("far_future", request.far_future)?,
        retention: request.retention,
        grace: length("grace", request.grace)?,
        detach_deadline: length("detach_deadline", request.detach_deadline)?,
    })
}
