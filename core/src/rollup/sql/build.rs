//! The first contents of a rollup.

use super::*;

/// Fills an empty stored table with everything that `counted` counts; or, if `below` is given, with what the stored groups of
/// the rollup below hold by then.
pub fn build(
    definition: &Definition,
    relations: &Relations,
    counted: &Counted,
    below: Option<(&Definition, &Relations)>,
) -> String {
    let groups = match below {
        Some((below, names)) => gathered(definition, below, &names.stored.to_string(), &[], None),
        None => None,
    };
    let groups = groups.unwrap_or_else(|| {
        let condition = format!("\n WHERE {}", counted.is_counted(&format!("r.{TAG}")));
        self::groups(definition, relations, &condition)
    });
    format!(
        "INSERT INTO {} ({})\n{groups}\n ORDER BY {}",
        relations.stored,
        stored_columns(definition).join(", "),
        write_order(definition)
    )
}

/// Fills an empty table of retained groups from that of the rollup below.
pub fn build_retained(
    definition: &Definition,
    relations: &Relations,
    below: (&Definition, &Relations),
) -> Option<String> {
    let groups = gathered(definition, below.0, &below.1.retained.to_string(), &[], Some(DEPARTURE))?;
    let columns = stored_columns(definition).join(", ");
    Some(format!("INSERT INTO {} ({columns}, {DEPARTURE})\n{groups}", relations.retained))
}
