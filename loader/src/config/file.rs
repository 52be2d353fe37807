//! `source.file`: how files are written. The names are those of PostgreSQL's COPY.

use std::path::Path;

use serde::Deserialize;

use crate::csv::Dialect;
use crate::{Error, Result};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSettings {
    /// Without it the extension of the file tells.
    pub format: Option<FileFormat>,
    /// Without it the extension of the file tells.
    pub compression: Option<Compression>,
    delimiter: Option<char>,
    quote: Option<char>,
    escape: Option<char>,
    /// Whether the first record holds names; with CSV it does unless this says otherwise.
    pub header: Option<bool>,
    /// Names of the fields, instead of those in the header.
    pub columns: Option<Vec<String>>,
    /// An unquoted field of this text is NULL.
    #[serde(default)]
    pub null: String,
    /// What a time without a zone means; without it such a time is refused.
    timezone: Option<Timezone>,
    /// The file is still being written: a last line without its end waits for the rest.
    #[serde(default)]
    pub growing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FileFormat {
    /// One JSON object a line.
    Ndjson,
    Csv,
    Parquet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Timezone {
    #[serde(rename = "UTC")]
    Utc,
}

impl FileSettings {
    /// Whether the settings fit each other.
    pub(super) fn check(&self) -> Result<()> {
        let characters = [("delimiter", self.delimiter), ("quote", self.quote), ("escape", self.escape)];
        for (name, character) in characters {
            if let Some(character) = character
                && (!character.is_ascii() || matches!(character, '\n' | '\r' | '\0'))
            {
                return Err(Error::unfit(format!("source.file.{name} must be one ASCII character, and no line end")));
            }
        }
        let dialect = self.characters(Dialect::default());
        if dialect.delimiter == dialect.quote || dialect.delimiter == dialect.escape {
            return Err(Error::unfit("source.file.delimiter must differ from quote and escape"));
        }
        if self.null.contains(['\n', '\r', dialect.delimiter.into(), dialect.quote.into()]) {
            return Err(Error::unfit("source.file.null must not hold a line end, the delimiter or the quote"));
        }
        match &self.columns {
            Some(columns) if columns.is_empty() => Err(Error::unfit("source.file.columns is empty")),
            _ => Ok(()),
        }
    }

    fn characters(&self, default: Dialect) -> Dialect {
        // Checked to be ASCII.
        let byte = |character: Option<char>, default: u8| character.map_or(default, |character| character as u8);
        let quote = byte(self.quote, default.quote);
        Dialect { delimiter: byte(self.delimiter, default.delimiter), quote, escape: byte(self.escape, quote) }
    }

    /// The characters of a CSV file; `None` for other formats.
    pub fn dialect(&self, path: &Path, format: FileFormat) -> Option<Dialect> {
        let has_tabs = extensions(path).0.is_some_and(|extension| matches!(extension.as_str(), "tsv" | "tab"));
        let default = Dialect { delimiter: if has_tabs { b'\t' } else { b',' }, ..Dialect::default() };
        (format == FileFormat::Csv).then(|| self.characters(default))
    }

    /// Format and compression of a file: as set, or by its extensions.
    pub fn form_of(&self, path: &Path) -> Result<(FileFormat, Compression)> {
        let (extension, compression) = extensions(path);
        let by_extension = match extension.as_deref() {
            Some("ndjson" | "jsonl") => Some(FileFormat::Ndjson),
            Some("csv" | "tsv" | "tab") => Some(FileFormat::Csv),
            Some("parquet") => Some(FileFormat::Parquet),
            _ => None,
        };
        let format = self.format.or(by_extension).ok_or_else(|| {
            Error::unfit_hint(
                format!("the name of \"{}\" does not tell its format", path.display()),
                "Say it with source.file.format, or to files with --format: \"ndjson\", \"csv\" or \"parquet\".",
            )
        })?;
        Ok((format, self.compression.unwrap_or(compression)))
    }

    /// A time without a zone is one of UTC.
    pub fn is_utc(&self) -> bool {
        self.timezone == Some(Timezone::Utc)
    }
}

/// The extension of a file without that of its compression, in lower case.
fn extensions(path: &Path) -> (Option<String>, Compression) {
    let extension = |path: &Path| path.extension().and_then(|text| text.to_str()).map(str::to_ascii_lowercase);
    let compression = match extension(path).as_deref() {
        Some("gz") => Compression::Gzip,
        Some("zst") => Compression::Zstd,
        _ => return (extension(path), Compression::None),
    };
    (extension(&path.with_extension("")), compression)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> FileSettings {
        toml::from_str(text).unwrap()
    }

    fn form(text: &str, path: &str) -> Result<(FileFormat, Compression)> {
        settings(text).form_of(Path::new(path))
    }

    #[test]
    fn extensions_tell_the_format_and_settings_overrule_them() {
        use Compression::{Gzip, None, Zstd};
        assert_eq!(form("", "/a.b/events.ndjson").unwrap(), (FileFormat::Ndjson, None));
        assert_eq!(form("", "events.JSONL.gz").unwrap(), (FileFormat::Ndjson, Gzip));
        assert_eq!(form("", "events.csv.zst").unwrap(), (FileFormat::Csv, Zstd));
        assert_eq!(form("", "events.tsv").unwrap(), (FileFormat::Csv, None));
        assert_eq!(form("format = \"csv\"\ncompression = \"none\"", "events.gz").unwrap(), (FileFormat::Csv, None));
        assert_eq!(form("", "events.txt").unwrap_err().code(), 3);
    }

    #[test]
    fn a_tsv_file_has_tabs_unless_a_delimiter_is_set() {
        let delimiter =
            |text: &str, path: &str| settings(text).dialect(Path::new(path), FileFormat::Csv).unwrap().delimiter;
        assert_eq!(delimiter("", "a.tsv.gz"), b'\t');
        assert_eq!(delimiter("", "a.csv"), b',');
        assert_eq!(delimiter("delimiter = \";\"", "a.tsv"), b';');
    }

    #[test]
    fn characters_that_do_not_fit_are_refused() {
        for text in [
            "delimiter = \"\\n\"",
            "delimiter = \"\u{a7}\"",
            "delimiter = \"\\\"\"",
            "quote = \",\"",
            "null = \"a,b\"",
            "columns = []",
        ] {
            assert_eq!(settings(text).check().unwrap_err().code(), 3, "{text}");
        }
        assert!(settings("delimiter = \"\\t\"\nquote = \"'\"\nescape = \"\\\\\"\nnull = \"\\\\N\"").check().is_ok());
    }
}
