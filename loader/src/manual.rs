//! Man pages and shell completions, made from the command line itself: for those who package `tally-loader`.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::arguments::{Arguments, CompletionsArguments, ManualArguments};
use crate::{Error, Result};

/// Writes `tally-loader.1` and a page for each subcommand.
pub fn run(arguments: ManualArguments) -> Result<()> {
    let to = &arguments.to;
    write_pages(to).map_err(|error| {
        Error::unfit(format!("cannot write manual pages into the folder \"{}\": {error}", to.display()))
    })
}

/// Prints the completions of a shell.
pub fn completions(arguments: CompletionsArguments) -> Result<()> {
    io::stdout()
        .write_all(&script(arguments.shell))
        .map_err(|error| Error::unfit(format!("cannot write to standard output: {error}")))
}

fn write_pages(to: &Path) -> io::Result<()> {
    // Each page is complete before it is written; the subcommand `help` has no page of its own.
    clap_mangen::generate_to(Arguments::command().disable_help_subcommand(true), to)
}

/// Into memory first: the library panics when what it writes to fails.
fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tally-loader", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// The subcommands for users, as the parser knows them.
    fn subcommands() -> Vec<String> {
        let command = Arguments::command();
        let shown = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
        shown.map(|subcommand| subcommand.get_name().to_owned()).collect()
    }

    #[test]
    fn every_subcommand_has_a_page_and_is_named_on_the_first() {
        let folder = tempfile::tempdir().unwrap();
        run(ManualArguments { to: folder.path().to_owned() }).unwrap();
        let page = |name: &str| {
            let path = folder.path().join(format!("{name}.1"));
            // A hyphen is escaped, so that it can be copied from the page.
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}")).replace("\\-", "-")
        };
        let first = page("tally-loader");
        for name in subcommands() {
            assert!(first.contains(&format!("tally-loader-{name}(1)")), "{name} in {first}");
            let own = page(&format!("tally-loader-{name}"));
            assert!(own.contains(".SH DESCRIPTION") && own.contains("--log-format"), "{own}");
        }
        assert!(page("tally-loader-run").contains("--until-end"));
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            subcommands().len() + 1,
            "no page of what is hidden"
        );
    }

    #[test]
    fn every_shell_completes_every_subcommand() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for name in subcommands() {
                assert!(script.contains(&name), "{name} in {shell}");
            }
            assert!(script.contains("until-end"), "{shell}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = run(ManualArguments { to: folder.path().join("missing") }).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        assert_eq!(error.code(), 3);
    }
}
