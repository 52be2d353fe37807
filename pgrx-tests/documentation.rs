//! The documents are true: the SQL of README.md and docs/*.md runs as written, page by page in a fresh database.
//!
//! A block fenced as `sql` runs, one fenced as `sql no-run` does not. A `text` block right below a `sql` block is how
//! the output of psql for it ends.

use std::fs;
use std::path::{Path, PathBuf};

use tally_server_tests::cluster::{Cluster, feed};

/// One `sql` block of a page.
struct Example {
    line: usize,
    sql: String,
    output: Option<String>,
}

#[test]
fn readme_runs_as_written() {
    run_page(&root().join("README.md"));
}

#[test]
fn every_page_of_the_documentation_runs_as_written() {
    let mut pages: Vec<PathBuf> =
        fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    pages
        .iter()
        .filter(|page| page.extension().is_some_and(|extension| extension == "md"))
        .for_each(|page| run_page(page));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn run_page(page: &Path) {
    // psql prints this between two blocks; no document does.
    const BORDER: &str = "=-=-= tally documentation =-=-=";
    let text = fs::read_to_string(page).unwrap();
    let examples = examples(&text);
    let page = page.strip_prefix(root()).unwrap().display();

    let cluster = Cluster::shared();
    let database = if text.contains("CREATE EXTENSION tally") { cluster.empty_database() } else { cluster.database() };
    let script: String = examples.iter().map(|example| format!("{}\n\\echo {BORDER}\n", example.sql)).collect();
    let mut psql = database.psql_command();
    let printed = feed(psql.args(["--quiet", "--set", "ON_ERROR_STOP=1"]), &script);
    let stdout = String::from_utf8(printed.stdout).unwrap();
    let outputs: Vec<&str> = stdout.split(&format!("{BORDER}\n")).collect();

    for (example, output) in examples.iter().zip(&outputs) {
        if let Some(expected) = &example.output {
            let (printed, expected) = (tidy(output), tidy(expected));
            assert!(
                printed.ends_with(&expected),
                "{page}:{} says\n{}\nbut psql prints\n{}",
                example.line,
                expected.join("\n"),
                printed.join("\n")
            );
        }
    }
    let done = outputs.len() - 1;
    assert!(
        printed.status.success() && done == examples.len(),
        "{page}:{}: {}",
        examples.get(done).map_or(0, |example| example.line),
        String::from_utf8_lossy(&printed.stderr)
    );
}

/// Space at the end of lines, empty lines and the count of rows below a result may be left out of a document.
fn tidy(text: &str) -> Vec<&str> {
    let is_count = |line: &&str| line.starts_with('(') && (line.ends_with(" rows)") || *line == "(1 row)");
    text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !is_count(line)).collect()
}

fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut lines = page.lines().enumerate();
    // True between a sql block and the next line that says something.
    let mut output_may_follow = false;
    while let Some((number, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            output_may_follow &= line.trim().is_empty();
            continue;
        };
        let body: Vec<&str> =
            lines.by_ref().map(|(_, line)| line).take_while(|line| !line.starts_with("```")).collect();
        let body = body.join("\n");
        match language.trim() {
            "text" if output_may_follow => {
                examples.last_mut().expect("a sql block stands above").output = Some(body);
                output_may_follow = false;
            }
            "sql" => {
                examples.push(Example { line: number + 1, sql: body, output: None });
                output_may_follow = true;
            }
            _ => output_may_follow = false,
        }
    }
    examples
}

#[test]
fn blocks_of_a_page_are_told_apart() {
    let page = "```sql\nSELECT 1\n```\n\n```text\none\n```\n```sql no-run\nDROP\n```\n```sql\nSELECT 2\n```\nprose\n```text\nno\n```";
    let examples = examples(page);
    let found: Vec<(usize, &str, Option<&str>)> =
        examples.iter().map(|example| (example.line, example.sql.as_str(), example.output.as_deref())).collect();
    assert_eq!(found, [(1, "SELECT 1", Some("one")), (11, "SELECT 2", None)]);
}
