//! What is in a file arrives as it is there, whatever its format.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::files::Files;

/// What `COPY TO` writes comes back as it was, by these options of COPY and these settings of `source.file`.
fn comes_back(ddl: &str, forms: &[(&str, &str)]) {
    let mut files = Files::new(&format!("{ddl}; INSERT INTO public.original DEFAULT VALUES;"));
    let count = files.loading.number("SELECT count(*) FROM public.original");
    for (number, (options, settings)) in forms.iter().enumerate() {
        let mut copy = Vec::new();
        let sql = format!("COPY public.original TO STDOUT (FORMAT csv, {options})");
        std::io::copy(&mut files.loading.session().copy_out(&sql).unwrap(), &mut copy).unwrap();
        files.loading.source = format!("file = {{ {settings} }}");
        let path = files.write(&format!("{number}.csv"), copy);
        files.load(&path).unwrap();
        let dead = files.loading.texts("SELECT concat_ws(': ', column_name, error) FROM tally.dead_letters");
        assert_eq!(dead, [""; 0], "{options}");
        let difference = "SELECT count(*) FROM ((TABLE public.t EXCEPT ALL TABLE public.original)
                            UNION ALL (TABLE public.original EXCEPT ALL TABLE public.t)) AS d";
        assert_eq!((files.loading.number(difference), files.rows()), (0, count), "{options}");
        files.loading.session().batch_execute("TRUNCATE public.t").unwrap();
    }
}

#[test]
fn csv_is_loaded_as_copy_does() {
    comes_back(
        "CREATE TABLE public.t (a int, b text, c numeric(6,2), d float8, e bool, f timestamptz, g timestamp, h uuid, i jsonb);
         CREATE TABLE public.original (LIKE public.t);
         INSERT INTO public.original
           SELECT n, CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN E'two\\nlines, \"quoted\"\\r\\n' ELSE ' blanks ' END,
                  n / 7.0, CASE WHEN n % 50 = 0 THEN 'NaN' WHEN n % 51 = 0 THEN '-Infinity' ELSE n / 3.0 END, n % 3 = 0,
                  timestamptz '2000-01-01 12:00:00.123456+00' + n * interval '1 hour',
                  timestamp '2000-01-01 12:00:00' + n * interval '1 minute',
                  md5(n::text)::uuid, jsonb_build_object('n', n, 't', E'a\\\"b')
             FROM generate_series(-500, 500) AS n",
        &[
            ("HEADER", ""),
            ("HEADER, FORCE_QUOTE *", ""),
            (
                "HEADER, DELIMITER E'\\t', QUOTE '''', NULL 'nothing'",
                "delimiter = \"\\t\", quote = \"'\", null = \"nothing\"",
            ),
            (
                "ESCAPE '\\'",
                "escape = '\\', header = false, columns = [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"h\", \"i\"]",
            ),
        ],
    );
}

/// Rows of all further types, and of these columns with these values.
fn rarer(columns: &str, values: &str) -> String {
    r#"CREATE TYPE public.mood AS ENUM ('sad', 'so so', '"fine"');
       CREATE TABLE public.t (n int, a oid, b date, c time, d timetz, e interval, f bytea, g inet, h cidr, i public.mood,
         j smallint, k real, l varchar(3), o int[], p text[], q timestamptz[], r timestamp[], s numeric[], u jsonb[],
         v public.mood[], w boolean[] COLUMNS);
       CREATE TABLE public.original (LIKE public.t);
       INSERT INTO public.original
         SELECT n, n * 1000000, CASE WHEN n % 50 = 0 THEN date 'infinity' ELSE date '2000-01-01' + n * 100 END,
                time '12:34:56.789' + n * interval '1 s', timetz '12:34:56+02', n * interval '1 year -3 days 04:05:06.7',
                decode(md5(n::text), 'hex'), inet '10.1.2.3/8' + n, network(inet '2001:db8::/64' + n),
                (enum_range(NULL::public.mood))[1 + n % 3], n, n / 3.0, 'ab ', ARRAY[[n, NULL], [-n, 7]],
                ARRAY['', 'NULL', NULL, 'a,b', '{}', E'"\\\n', ' x '], ARRAY[timestamptz '-infinity', now()],
                ARRAY[timestamp '2000-01-01 12:00:00.5'], ARRAY['NaN', n / 7.0]::numeric[], ARRAY[jsonb '{"a": [1, "\\"]}'],
                enum_range(NULL::public.mood), ARRAY[true, false] VALUES
           FROM generate_series(0, 300) AS n;
       INSERT INTO public.original (n, o, p) VALUES (-1, '{}', '{}')"#
        .replacen("COLUMNS", columns, 1)
        .replacen("VALUES", values, 1)
}

#[test]
fn csv_of_every_type_is_loaded_as_copy_does() {
    comes_back(&rarer("", ""), &[("HEADER", ""), ("HEADER, FORCE_QUOTE *", "")]);
}

#[test]
fn csv_of_types_that_only_postgresql_reads_is_loaded_as_copy_does() {
    let values = ", int4range(n, n + 5), 'a ''b c''', ARRAY[int4range(n, 1000)]";
    let ddl = rarer(", x int4range, y tsvector, z int4range[]", values);
    comes_back(&ddl, &[("HEADER", ""), ("HEADER, FORCE_QUOTE *", "")]);
}

#[test]
fn a_column_without_a_field_refuses_the_start() {
    let mut files = Files::new("CREATE TABLE public.t (a int, country_name text);");
    let path = files.write("population.csv", "Country Name,a\nAruba,1\n");
    let error = files.load(&path).unwrap_err();
    assert_eq!((error.code(), files.rows()), (3, 0), "{error}");
    let expected = "column \"country_name\" takes the field \"country_name\", which the file does not have";
    assert_eq!(error.to_string(), expected);
    files.loading.target = "columns.country_name = { from = \"Country Name\" }".into();
    files.load(&path).unwrap();
    assert_eq!(files.loading.texts("SELECT country_name FROM public.t"), ["Aruba"]);
}

/// The table for the form of web-events.ndjson, and its settings.
fn web_events() -> Files {
    let mut files = Files::new(
        "CREATE TABLE public.t (event_id text, event_time timestamptz NOT NULL, customer_id bigint NOT NULL, event_type text,
           country text, browser text, device_id bigint, session_id bigint, page text, status int, bytes bigint, at bigint);",
    );
    files.loading.target = "columns.at = { from = \"_offset\" }\nunknown_fields = \"reject\"".into();
    files
}

/// What is known of such a file: rows, tenants, devices, sessions, without a browser, with a country, events of each type, lines
/// that are older than the one before.
fn facts(files: &Files) -> String {
    let sql = "SELECT concat_ws(' ', count(*), count(DISTINCT customer_id), count(DISTINCT device_id), count(DISTINCT session_id),
                 count(*) FILTER (WHERE browser IS NULL), count(country),
                 (SELECT string_agg(concat_ws('=', event_type, n), ',' ORDER BY n DESC)
                    FROM (SELECT event_type, count(*) AS n FROM public.t GROUP BY 1) AS types),
                 count(*) FILTER (WHERE event_time < before))
                 FROM (SELECT *, lag(event_time) OVER (ORDER BY at) AS before FROM public.t) AS t";
    files.loading.texts(sql).remove(0)
}

#[test]
fn web_events_arrive_with_all_their_facts() {
    let files = web_events();
    let mut text = String::new();
    for number in 0..3_000u64 {
        let browser = if number % 50 == 0 { "null".to_owned() } else { format!("\"b{}\"", number % 4) };
        let kind = if number % 1_000 == 7 { "probe" } else { "view" };
        let second = if number % 10 == 9 { number - 3 } else { number };
        let _ = writeln!(
            text,
            "{{\"event_id\": \"web-{number:05}\", \"event_time\": \"2015-05-17T{:02}:{:02}:{:02}Z\", \"customer_id\": {}, \
             \"event_type\": \"{kind}\", \"country\": null, \"browser\": {browser}, \"device_id\": {}, \"session_id\": {}, \
             \"page\": \"/a?b=\\\"c\\\"\", \"status\": 200, \"bytes\": {}}}",
            10 + second / 3_600,
            second / 60 % 60,
            second % 60,
            number % 41,
            2_005_173_186_386_151_000 + number % 1_862,
            number / 2,
            number * 1_000_000,
        );
    }
    let path = files.write("web-events.ndjson", text);
    for _ in 0..2 {
        files.load(&path).unwrap();
        assert_eq!(facts(&files), "3000 41 1862 1500 60 0 view=2997,probe=3 300");
    }
}

/// The table for the form of population.csv, and its settings.
fn population() -> Files {
    let mut files = Files::new("CREATE TABLE public.t (country text, code text, year int, value numeric);");
    files.loading.target =
        "columns.country = { from = \"Country Name\" }\ncolumns.code = { from = \"Country Code\" }\n\
                            columns.year = { from = \"Year\" }\ncolumns.value = { from = \"Value\" }"
            .into();
    files
}

#[test]
fn population_keeps_quoted_names_and_every_digit() {
    let files = population();
    let mut text = "Country Name,Country Code,Year,Value\r\n".to_owned();
    for year in 1960..2020 {
        let _ = write!(text, "Aruba,ABW,{year},{}\r\n\"Egypt, Arab Rep.\",EGY,{year},{year}.50\r\n", year * 7);
    }
    let path = files.write("population.csv", text);
    files.load(&path).unwrap();
    let sql = "SELECT concat_ws('|', country, code, count(*), min(year), max(year), sum(value)) FROM public.t GROUP BY country, code
                ORDER BY country";
    assert_eq!(
        files.loading.texts(sql),
        ["Aruba|ABW|60|1960|2019|835590", "Egypt, Arab Rep.|EGY|60|1960|2019|119400.00"]
    );
}

/// The real files, where `TALLY_TEST_DATA` names the folder that holds them.
#[test]
fn the_real_files_arrive_with_all_their_facts() {
    let Some(folder) = std::env::var_os("TALLY_TEST_DATA").map(PathBuf::from) else {
        eprintln!("SKIPPED: TALLY_TEST_DATA does not name a folder with web-events.ndjson and population.csv");
        return;
    };
    let files = web_events();
    files.load(&folder.join("web-events.ndjson")).unwrap();
    assert_eq!(facts(&files), "10000 41 1862 3224 190 0 view=9952,probe=42,submit=5,options=1 4915");
    let files = population();
    files.load(&folder.join("population.csv")).unwrap();
    assert_eq!(files.rows(), 17_195);
    assert_eq!(files.loading.number("SELECT count(*) FROM tally.dead_letters"), 0);
}

#[cfg(feature = "parquet")]
mod parquet {
    use std::fs::File;
    use std::sync::Arc;

    use parquet::column::writer::ColumnWriter;
    use parquet::data_type::ByteArray;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use crate::files::Files;

    const ROWS: i64 = 30_000;

    /// Rows with the numbers 0 to `ROWS`, in groups of 7,000, compressed.
    fn write(path: &std::path::Path) {
        let schema = "message m { required int64 a; optional double d; required binary s (UTF8);
            required int64 at (TIMESTAMP(MILLIS,true)); required int64 local (TIMESTAMP(MICROS,false)); required int32 price (DECIMAL(9,2)); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let compression = parquet::basic::Compression::SNAPPY;
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
        for first in (0..ROWS).step_by(7_000) {
            let numbers: Vec<i64> = (first..(first + 7_000).min(ROWS)).collect();
            let mut group = writer.next_row_group().unwrap();
            let mut index = 0;
            while let Some(mut column) = group.next_column().unwrap() {
                match column.untyped() {
                    ColumnWriter::Int64ColumnWriter(column) => {
                        let factor = [1, 0, 0, 1_000, 1_000_000][index];
                        let values: Vec<i64> = numbers.iter().map(|number| number * factor).collect();
                        column.write_batch(&values, None, None).unwrap();
                    }
                    ColumnWriter::DoubleColumnWriter(column) => {
                        let present = |number: &&i64| **number % 3 > 0;
                        let values: Vec<f64> =
                            numbers.iter().filter(present).map(|number| *number as f64 / 7.0).collect();
                        let levels: Vec<i16> = numbers.iter().map(|number| i16::from(present(&number))).collect();
                        column.write_batch(&values, Some(&levels), None).unwrap();
                    }
                    ColumnWriter::ByteArrayColumnWriter(column) => {
                        let text = |number: &i64| ByteArray::from(format!("n\u{f6} \"{number}\"").as_str());
                        let values: Vec<ByteArray> = numbers.iter().map(text).collect();
                        column.write_batch(&values, None, None).unwrap();
                    }
                    ColumnWriter::Int32ColumnWriter(column) => {
                        let values: Vec<i32> = numbers.iter().map(|number| *number as i32 - 5).collect();
                        column.write_batch(&values, None, None).unwrap();
                    }
                    _ => panic!("column {index}"),
                };
                column.close().unwrap();
                index += 1;
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn parquet_types_arrive_as_they_are() {
        let mut files = Files::new(
            "CREATE TABLE public.t (a bigint CHECK (a <> 12345), d float8, s text, at timestamptz, local timestamp, price numeric(9,2));",
        );
        let path = files.write("a.parquet", "");
        write(&path);
        // A local time means nothing until somebody says which zone it is of.
        files.loading.policy = "dead_letters = { stop_above_ratio = 1.0, stop_above_per_minute = 1 }".into();
        assert_eq!(files.load(&path).unwrap_err().code(), 6);
        files.loading.policy = String::new();
        files.loading.source = "file = { timezone = \"UTC\" }".into();
        files.load(&path).unwrap();
        assert_eq!(files.rows(), ROWS - 1);
        let wrong = "SELECT count(*) FROM public.t WHERE (d, s, at, local, price) IS DISTINCT FROM
                       (CASE WHEN a % 3 > 0 THEN a / 7.0::float8 END, format('n\u{f6} \"%s\"', a), to_timestamp(a),
                        timestamp '1970-01-01' + a * interval '1 s', (a - 5) / 100.0)";
        assert_eq!(files.loading.number(wrong), 0);
        let letters = "SELECT concat_ws(' ', message_offset, reason, convert_from(value, 'UTF8')::json ->> 'a') FROM tally.dead_letters";
        assert_eq!(files.loading.texts(letters), ["12345 constraint 12345"]);
        files.load(&path).unwrap();
        assert_eq!(files.rows(), ROWS - 1);
    }
}
