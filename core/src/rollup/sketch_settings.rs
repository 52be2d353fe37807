//! With which parameters a rollup makes its sketches. Sketches of different parameters cannot be united, and settings of a session
//! may change at any time; so the parameters are part of the definition, also those that it leaves to the settings.

use super::aggregate::Refusal;
use super::analysis::Argument;
use crate::error::Explain;
use crate::sketch::Params;
use crate::topn::Counters;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the settings `tally.hll_default_*` and `tally.topn_counters` were when the rollup was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SketchSettings {
    pub log2m: i64,
    pub regwidth: i64,
    pub expthresh: i64,
    pub sparseon: i64,
    pub counters: i64,
}

impl Default for SketchSettings {
    fn default() -> Self {
        Self { log2m: 11, regwidth: 5, expthresh: -1, sparseon: 1, counters: 1000 }
    }
}

impl SketchSettings {
    /// All parameters of a sketch of different values, of which the query gives the first ones.
    ///
    /// # Errors
    /// One that is no literal, or out of its range.
    pub(super) fn distinct(&self, given: &[Argument]) -> Result<Parameters, Refusal> {
        let mut all = [self.log2m, self.regwidth, self.expthresh, self.sparseon];
        for (parameter, argument) in all.iter_mut().zip(given) {
            *parameter = literal(argument)?;
        }
        let [log2m, regwidth, expthresh, sparseon] = all;
        Params::new(log2m, regwidth, expthresh, sparseon).map_err(|error| refused(&error))?;
        Ok(Parameters::Distinct(all))
    }

    /// The number of counters of a sketch of the most frequent values, if the query does not give it.
    ///
    /// # Errors
    /// As [`Self::distinct`].
    pub(super) fn frequent(&self, given: Option<&Argument>) -> Result<Parameters, Refusal> {
        let counters = given.map_or(Ok(self.counters), literal)?;
        Counters::new(counters).map_err(|error| refused(&error))?;
        Ok(Parameters::Frequent(counters))
    }
}

/// What stands behind the value in a call that makes a sketch; nothing of the session has a say then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parameters {
    /// It takes none.
    #[default]
    None,
    /// log2m, regwidth, expthresh and sparseon.
    Distinct([i64; 4]),
    Frequent(i64),
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = match self {
            Self::None => return Ok(()),
            Self::Distinct(all) => &all[..],
            Self::Frequent(counters) => std::slice::from_ref(counters),
        };
        all.iter().try_for_each(|parameter| write!(f, ", {parameter}"))
    }
}

/// The number that an argument is, as PostgreSQL writes it: `14`, `'-1'::integer`, `('-1'::integer)::bigint`.
fn literal(argument: &Argument) -> Result<i64, Refusal> {
    let sql = argument.expression.sql.trim_start_matches(['(', '\'']);
    let (number, casts) = sql.split_at(sql.find(['\'', ')', ':']).unwrap_or(sql.len()));
    let is_cast = casts.split("::").skip(1).all(|cast| ["integer", "bigint"].contains(&cast.trim_end_matches(')')));
    let is_number = casts.split("::").next().is_some_and(|end| end.chars().all(|end| ['\'', ')'].contains(&end)));
    number.parse().ok().filter(|_| is_cast && is_number).ok_or(Refusal::VaryingPrecision)
}

fn refused(error: &impl Explain) -> Refusal {
    Refusal::Parameters { sqlstate: error.sqlstate(), message: error.to_string(), hint: error.hint() }
}

#[cfg(test)]
mod tests {
    use super::super::analysis::Expression;
    use super::*;

    fn arguments(given: &[&str]) -> Vec<Argument> {
        let argument = |sql: &&str| Argument {
            expression: Expression { sql: (*sql).into(), ..Expression::default() },
            type_name: "integer".into(),
            deterministic: true,
            has_order: true,
            has_lasting_hash: true,
            never_null: true,
            has_fixed_scale: true,
        };
        given.iter().map(argument).collect()
    }

    #[test]
    fn what_is_not_given_comes_from_the_settings() {
        let settings = SketchSettings { log2m: 12, counters: 7, ..SketchSettings::default() };
        let distinct = |given: &[&str]| settings.distinct(&arguments(given)).unwrap().to_string();
        assert_eq!(distinct(&[]), ", 12, 5, -1, 1");
        assert_eq!(distinct(&["14"]), ", 14, 5, -1, 1");
        assert_eq!(distinct(&["14", "6", "('-1'::integer)::bigint", "0"]), ", 14, 6, -1, 0");
        assert_eq!(distinct(&["14", "6", "'-1'::integer"]), ", 14, 6, -1, 1");
        assert_eq!(settings.frequent(None).unwrap().to_string(), ", 7");
        assert_eq!(settings.frequent(arguments(&["500"]).first()).unwrap().to_string(), ", 500");
        assert_eq!(Parameters::None.to_string(), "");
    }

    #[test]
    fn a_parameter_is_a_literal() {
        let settings = SketchSettings::default();
        for varying in ["x", "a.b", "(1 + 2)", "14 + 1", "'14'::text", "NULL::integer", "", "14::integer + 1", "f(14)"]
        {
            assert_eq!(settings.distinct(&arguments(&[varying])), Err(Refusal::VaryingPrecision), "{varying}");
        }
    }

    #[test]
    fn a_parameter_is_within_its_range() {
        let settings = SketchSettings::default();
        let found = settings.distinct(&arguments(&["18"])).unwrap_err();
        let Refusal::Parameters { sqlstate: "22023", message, .. } = found else { panic!("{found:?}") };
        assert_eq!(message, "log2m modifier must be between 0 and 17");
        assert!(matches!(settings.frequent(arguments(&["0"]).first()), Err(Refusal::Parameters { .. })));
    }
}
