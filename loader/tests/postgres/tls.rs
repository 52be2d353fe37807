//! A server that wants TLS: what each `sslmode` accepts, passwords by SCRAM, certificates of the client.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use tally_loader::{Error, postgres as connection};
use tally_server_tests::cluster::Cluster;

use crate::certificates::Certificates;
use crate::loading::{Loading, PLAIN, block_on};

const PASSWORD: &str = "correct-horse-battery-staple";
/// Who comes by the network needs TLS, and a password or a certificate; the socket is for the test.
const HBA: &[u8] = b"local all all trust
                     hostssl all with_password all scram-sha-256
                     hostssl all loader all cert
                     host all all all reject";

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its number").port()
}

/// Connects with these keys in the section `postgres`, and returns the version of TLS.
fn version(loading: &Loading<'_>) -> Result<String, Error> {
    let config = loading.try_config()?;
    block_on(async {
        // Whatever is refused is refused at once, long before this.
        let client = connection::connect_within(&config.postgres, &config.pipeline, Duration::from_secs(60)).await?;
        let row = client.query_one("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await;
        Ok(row.expect("the server's view").get(0))
    })
}

#[test]
fn each_sslmode_accepts_what_it_should_and_no_more() {
    let port = free_port();
    let settings = [("port", &*port.to_string()), ("listen_addresses", "127.0.0.1"), PLAIN[0]];
    let server = Cluster::start(&settings);
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(folder.path());
    let mut loading = Loading::on(&server, 1, "CREATE TABLE public.t (a int); CREATE ROLE loader LOGIN SUPERUSER");
    let password = format!("CREATE ROLE with_password LOGIN SUPERUSER PASSWORD '{PASSWORD}'");
    loading.session().batch_execute(&password).unwrap();
    let dbname = loading.database.name().to_owned();
    let file = |name: &str, secret: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, secret).unwrap();
        path
    };
    let (right, wrong) = (file("right", PASSWORD), file("wrong", "hunter2-hunter2"));
    let mut with = |host: &str, mode: &str, keys: &str| {
        let user = if keys.contains("sslcert") || keys.contains("uncertified") { "loader" } else { "with_password" };
        let keys = keys.replace("uncertified", "");
        let address = format!("host = \"{host}\", port = {port}, dbname = \"{dbname}\", user = \"{user}\"");
        loading.postgres = Some(format!("{address}, sslmode = \"{mode}\"{keys}"));
        version(&loading)
    };
    let known = format!(", password_file = {right:?}, sslrootcert = {:?}", certificates.path("authority.pem"));
    let strange = format!(", password_file = {right:?}, sslrootcert = {:?}", certificates.path("stranger.pem"));
    let refused = |result: Result<String, Error>, message: &str, hint: &str| {
        let error = result.unwrap_err();
        let found = (error.to_string(), error.hint().unwrap_or_default().to_owned());
        assert!(error.code() == 4 && found.0.to_lowercase().contains(message) && found.1.contains(hint), "{found:?}");
        assert!(!found.0.contains("hunter2"), "{found:?}");
    };
    let started = Instant::now();

    refused(with("127.0.0.1", "require", &known), "does not support tls", "Switch ssl on");

    let key = std::fs::read(certificates.path("server.pem")).unwrap();
    let key = server.private_file("server.pem", &key);
    let authority = server.private_file("authority.pem", &std::fs::read(certificates.path("authority.pem")).unwrap());
    let hba = server.private_file("hba.conf", HBA);
    server.configure(&[
        ("ssl", "on"),
        ("ssl_key_file", key.to_str().unwrap()),
        ("ssl_cert_file", key.to_str().unwrap()),
        ("ssl_ca_file", authority.to_str().unwrap()),
        ("hba_file", hba.to_str().unwrap()),
    ]);
    server.restart();

    for (host, mode, keys) in [
        ("127.0.0.1", "verify-full", &known),
        ("localhost", "verify-ca", &known),
        // Encrypted, and whoever it is.
        ("localhost", "require", &strange),
    ] {
        assert_eq!(with(host, mode, keys).unwrap(), "TLSv1.3", "{mode} with {host}");
    }
    refused(with("localhost", "verify-full", &known), "hostname mismatch", "postgres.host");
    refused(with("127.0.0.1", "verify-full", &strange), "certificate verify failed", "postgres.sslrootcert");
    refused(with("127.0.0.1", "verify-ca", &strange), "certificate verify failed", "postgres.sslrootcert");
    refused(with("127.0.0.1", "disable", &known), "pg_hba.conf", "postgres.sslmode");

    let wrong = known.replace(right.to_str().unwrap(), wrong.to_str().unwrap());
    refused(with("127.0.0.1", "verify-full", &wrong), "password authentication failed", "postgres.password_file");
    let no_password = known.replace(&format!("password_file = {right:?},"), "");
    refused(with("127.0.0.1", "verify-full", &no_password), "password missing", "postgres.password_env");

    let of = |certificate: &str, key: &str| {
        let (certificate, key) = (certificates.path(certificate), certificates.path(key));
        format!("{no_password}, sslcert = {certificate:?}, sslkey = {key:?}")
    };
    let own = of("client.pem", "client.key");
    assert_eq!(with("127.0.0.1", "verify-full", &own).unwrap(), "TLSv1.3");
    refused(
        with("127.0.0.1", "verify-full", &format!("{no_password}uncertified")),
        "requires a valid client certificate",
        "postgres.sslcert",
    );
    let false_one = of("false-client.pem", "false-client.key");
    let error = with("127.0.0.1", "verify-full", &false_one).unwrap_err();
    assert!(error.code() == 4 && error.hint().is_some(), "{error}");
    refused(with("127.0.0.1", "verify-full", &of("client.pem", "false-client.key")), "key values mismatch", "sslkey");
    let error = with("127.0.0.1", "verify-full", ", sslrootcert = \"/no/such/file\"").unwrap_err();
    assert!(error.code() == 3 && error.to_string().contains("postgres.sslrootcert"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(50), "a refusal was tried again and again");

    // And the loader loads.
    with("127.0.0.1", "verify-full", &known).unwrap();
    (0..10).for_each(|n| _ = loading.produce(0, &format!("{{\"a\": {n}}}")));
    loading.load().unwrap();
    loading.assert_exactly_once(10);
}
