//! TLS and login. What is refused ends the loader with exit code 4, says why and what to do, and never a secret.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod};
use tally_server_tests::cluster::Cluster;

use crate::broker::{self, Broker, PASSWORD, USER};
use crate::pipeline::{Pipeline, World};

/// A token as the broker's validator for tests takes it: JSON, without a signature.
fn token(lifetime: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs().cast_signed();
    let claims = format!(r#"{{"sub":"{USER}","iat":{},"exp":{}}}"#, now - 60, now + lifetime);
    format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims))
}

/// A pipeline that reaches the broker at this port, with these lines of the section `source`.
fn pipeline<'a>(broker: &'a Broker, host: &str, port: u16) -> Pipeline<'a> {
    let mut pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.servers = format!("{host}:{port}");
    pipeline
}

fn tls(broker: &Broker, authority: &str) -> String {
    format!("tls = {{ ca_file = {:?} }}\n", broker.certificates.path(authority))
}

/// The keys for a mechanism with this password or token in a file.
fn sasl(pipeline: &Pipeline<'_>, mechanism: &str, secret: &str) -> String {
    let secret = pipeline.secret("secret", secret);
    let keys = match mechanism {
        "OAUTHBEARER" => format!("token_file = {secret:?}"),
        _ => format!("username_file = {:?}, password_file = {secret:?}", pipeline.secret("user", USER)),
    };
    format!("sasl = {{ mechanism = \"{mechanism}\", {keys} }}\n")
}

#[test]
fn every_mechanism_logs_in_and_loads() {
    let Some(broker) = broker::shared() else { return };
    let mut pipeline = pipeline(broker, "127.0.0.1", broker.login_port());
    for (seed, mechanism) in (1..).zip(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]) {
        let secret = if mechanism == "OAUTHBEARER" { token(600) } else { PASSWORD.to_owned() };
        pipeline.source = sasl(&pipeline, mechanism, &secret) + &tls(broker, "authority.pem");
        pipeline.produce(200, seed);
        pipeline.load_to_end();
        pipeline.assert_exact(0);
    }
}

#[test]
fn a_client_certificate_logs_in_and_loads() {
    let Some(broker) = broker::shared() else { return };
    let mut pipeline = pipeline(broker, "127.0.0.1", broker.mutual_port());
    let of = |file| broker.certificates.path(file);
    pipeline.source = format!(
        "tls = {{ ca_file = {:?}, certificate_file = {:?}, key_file = {:?} }}",
        of("authority.pem"),
        of("client.pem"),
        of("client.key")
    );
    pipeline.produce(200, 1);
    pipeline.load_to_end();
    pipeline.assert_exact(0);
}

#[test]
fn a_refused_login_or_certificate_ends_with_4_and_says_what_to_do() {
    let Some(broker) = broker::shared() else { return };
    let good = tls(broker, "authority.pem");
    let cases: [(&str, &str, u16, String, &[&str]); 9] = [
        ("PLAIN", "127.0.0.1", broker.login_port(), good.clone(), &["refuses the login", "source.sasl"]),
        ("SCRAM-SHA-256", "127.0.0.1", broker.login_port(), good.clone(), &["refuses the login", "source.sasl"]),
        ("SCRAM-SHA-512", "127.0.0.1", broker.login_port(), good.clone(), &["refuses the login", "source.sasl"]),
        // Not a JSON Web Token, so nothing here sees that it is wrong.
        ("OAUTHBEARER", "127.0.0.1", broker.login_port(), good.clone(), &["refuses the login", "source.sasl"]),
        ("expired", "127.0.0.1", broker.login_port(), good.clone(), &["has expired", "source.sasl.token_file"]),
        (
            "PLAIN",
            "127.0.0.1",
            broker.login_port(),
            tls(broker, "stranger.pem"),
            &["certificate of 127.0.0.1:", "cannot be verified", "source.tls.ca_file"],
        ),
        (
            "PLAIN",
            "localhost",
            broker.login_port(),
            good.clone(),
            &["certificate of localhost:", "cannot be verified", "another host name"],
        ),
        (
            "none",
            "127.0.0.1",
            broker.mutual_port(),
            good.clone(),
            &["does not accept the certificate", "source.tls.certificate_file"],
        ),
        (
            "none",
            "127.0.0.1",
            broker.mutual_port(),
            format!(
                "tls = {{ ca_file = {:?}, certificate_file = {:?}, key_file = {:?} }}",
                broker.certificates.path("authority.pem"),
                broker.certificates.path("false-client.pem"),
                broker.certificates.path("false-client.key")
            ),
            &["does not accept the certificate", "source.tls.certificate_file"],
        ),
    ];
    thread::scope(|scope| {
        for (mechanism, host, port, tls, wanted) in cases {
            scope.spawn(move || {
                let mut pipeline = pipeline(broker, host, port);
                let secret = if mechanism == "expired" { token(-5) } else { "hunter2-hunter2".to_owned() };
                pipeline.source = match mechanism {
                    "none" => tls,
                    "expired" => sasl(&pipeline, "OAUTHBEARER", &secret) + &tls,
                    mechanism => sasl(&pipeline, mechanism, &secret) + &tls,
                };
                let (code, log) = pipeline.start(&["-v", "-v"]).outcome();
                assert_eq!(code, Some(4), "{mechanism} at {host}: {log}");
                wanted.iter().for_each(|text| assert!(log.contains(text), "{mechanism}: no \"{text}\" in {log}"));
                assert!(log.contains("hint: "), "{log}");
                assert!(!log.contains(&secret), "{log}");
            });
        }
    });
}

/// Nothing that others can see of a running loader has a secret in it: log, metrics, command line.
#[test]
fn no_secret_can_be_seen_from_outside() {
    let Some(broker) = broker::shared() else { return };
    let mut pipeline = pipeline(broker, "127.0.0.1", broker.login_port());
    for (seed, mechanism) in (1..).zip(["PLAIN", "SCRAM-SHA-512", "OAUTHBEARER"]) {
        let secret = if mechanism == "OAUTHBEARER" { token(600) } else { PASSWORD.to_owned() };
        pipeline.source = sasl(&pipeline, mechanism, &secret) + &tls(broker, "authority.pem");
        // Whoever looks for a mistake switches this on.
        pipeline.source += "librdkafka = { \"debug\" = \"all\" }\n";
        let before = pipeline.progress();
        pipeline.produce(50, seed);
        let loader = pipeline.start(&["-v", "-v"]);
        pipeline.wait_for_progress(before + 50);
        let command_line = std::fs::read(format!("/proc/{}/cmdline", loader.pid())).expect("the loader runs");
        let metrics = loader.metrics();
        assert!(metrics.contains("tally_loader_rows_total"), "{metrics}");
        let log = loader.log();
        for (place, text) in [("command line", String::from_utf8_lossy(&command_line).as_ref()), ("metrics", &metrics)]
        {
            assert!(!text.contains(&secret), "{mechanism}: {place}: {text}");
        }
        // SCRAM never sends the password; PLAIN sends it encoded.
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("\0{USER}\0{secret}"));
        assert!(!log.contains(&secret) && !log.contains(&encoded), "{mechanism}: {log}");
        let leaked = pipeline.session().query(
            "SELECT query FROM pg_stat_activity WHERE query LIKE '%' || $1 || '%' AND pid <> pg_backend_pid()",
            &[&secret],
        );
        assert!(leaked.expect("the sessions").is_empty());
        assert_eq!(loader.terminate(), Some(0));
    }
}

/// An authorisation server that gives one answer to each request, over TLS; its URL.
fn authorisation_server(broker: &Broker, status: &'static str, body: String) -> String {
    let mut acceptor = SslAcceptor::mozilla_intermediate(SslMethod::tls_server()).expect("an acceptor");
    let pem = broker.certificates.path("server.pem");
    acceptor.set_private_key_file(&pem, SslFiletype::PEM).expect("a key");
    acceptor.set_certificate_chain_file(&pem).expect("a certificate");
    let acceptor = acceptor.build();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("its number");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(mut stream) = acceptor.accept(stream) else { continue };
            let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
            let ends = ["grant_type=client_credentials", "client_id=tally", "client_secret=hunter2", "scope=read+all"];
            while !ends.iter().all(|part| String::from_utf8_lossy(&request).contains(part)) {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => request.extend_from_slice(&buffer[..count]),
                }
            }
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
            let _ = stream.shutdown();
        }
    });
    format!("https://{address}/token")
}

fn client_credentials(pipeline: &Pipeline<'_>, url: &str, authority: &Path) -> String {
    let secret = pipeline.secret("secret", "hunter2");
    format!(
        "sasl = {{ mechanism = \"OAUTHBEARER\", token_endpoint = {{ url = \"{url}\", client_id = \"tally\", scope = \"read all\", \
         client_secret_file = {secret:?}, ca_file = {authority:?} }} }}\n"
    )
}

#[test]
fn an_authorisation_server_gives_the_token() {
    let Some(broker) = broker::shared() else { return };
    let answer = format!(r#"{{"access_token":"{}","token_type":"Bearer","expires_in":600}}"#, token(600));
    let url = authorisation_server(broker, "200 OK", answer);
    let mut pipeline = pipeline(broker, "127.0.0.1", broker.login_port());
    let authority = broker.certificates.path("authority.pem");
    pipeline.source = client_credentials(&pipeline, &url, &authority) + &tls(broker, "authority.pem");
    pipeline.produce(100, 1);
    pipeline.load_to_end();
    pipeline.assert_exact(0);

    let refused = r#"{"error":"invalid_client","error_description":"hunter2 is wrong"}"#.to_owned();
    let url = authorisation_server(broker, "401 Unauthorized", refused);
    for (authority, wanted) in [("authority.pem", "401 invalid_client"), ("stranger.pem", "certificate verify failed")]
    {
        let authority = broker.certificates.path(authority);
        pipeline.source = client_credentials(&pipeline, &url, &authority) + &tls(broker, "authority.pem");
        let (code, log) = pipeline.start(&["-v", "-v"]).outcome();
        assert_eq!(code, Some(4), "{log}");
        assert!(log.contains(wanted) && log.contains("hint: Look at the token_* keys"), "{log}");
        assert!(!log.contains("hunter2"), "{log}");
    }
}
