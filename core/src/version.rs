//! The library comes with a package, the SQL objects with ALTER EXTENSION in each database: for a while they may be of two versions.

use crate::error::Explain;
use std::fmt;

/// The SQL objects of a database are not those that the library works with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub library: String,
    pub installed: String,
}

/// Does the library, of version `library`, work with the SQL objects of version `installed`? It works with its own.
pub fn check(library: &str, installed: &str) -> Result<(), Mismatch> {
    if library == installed {
        return Ok(());
    }
    Err(Mismatch { library: library.into(), installed: installed.into() })
}

impl Mismatch {
    /// What to run, or to do where SQL does not help.
    pub fn next_sql(&self) -> &'static str {
        if self.is_library_older() {
            "-- restart the server, which still has the older library"
        } else {
            "ALTER EXTENSION tally UPDATE;"
        }
    }

    fn is_library_older(&self) -> bool {
        numbers(&self.library) < numbers(&self.installed)
    }
}

/// The numbers of a version such as `0.1.0`, for comparison; one that is none counts as 0.
fn numbers(version: &str) -> Vec<u64> {
    version.split('.').map(|number| number.parse().unwrap_or(0)).collect()
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the library is of version {} of tally, this database of version {}", self.library, self.installed)
    }
}

impl Explain for Mismatch {
    fn sqlstate(&self) -> &'static str {
        "55000"
    }

    fn detail(&self) -> Option<String> {
        Some("Tables take rows and rollups are exact meanwhile; nothing of tally is refreshed or changed.".into())
    }

    fn hint(&self) -> Option<String> {
        Some(if self.is_library_older() {
            "Restart the server, or connect again if tally is not in shared_preload_libraries: the older library is still loaded.".into()
        } else {
            "Run ALTER EXTENSION tally UPDATE in this database.".into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_version_will_do() {
        assert_eq!(check("0.1.0", "0.1.0"), Ok(()));
        for (library, installed, is_older) in [
            ("0.1.0", "0.2.0", true),
            ("0.9.0", "0.10.0", true),
            ("0.2.0", "0.1.9", false),
            ("1.0.0", "0.99.99", false),
        ] {
            let mismatch = check(library, installed).unwrap_err();
            assert_eq!(mismatch.is_library_older(), is_older, "{mismatch}");
            assert_eq!(mismatch.next_sql().starts_with("--"), is_older, "{mismatch}");
            assert_eq!(mismatch.hint().unwrap().contains("Restart"), is_older, "{mismatch}");
        }
    }

    #[test]
    fn what_is_no_number_is_still_told_apart() {
        assert_eq!(check("0.1.0", "0.1.0-dev").unwrap_err().next_sql(), "ALTER EXTENSION tally UPDATE;");
        assert!(check("", "0.1.0").is_err());
    }
}
