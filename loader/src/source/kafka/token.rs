//! Tokens for OAUTHBEARER: from a variable, a file, or an authorisation server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use serde::Deserialize;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider, parse_pem};

use crate::config::{TokenEndpoint, TokenSource};

/// How long the authorisation server may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// When a token that does not tell its end is asked for again.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(3600);

/// A token to log in with now. The error says what is wrong, without the token.
pub fn token(source: &TokenSource) -> Result<OAuthToken, String> {
    let (token, place, lifetime) = match source {
        TokenSource::Fixed(token) => (token.reveal().to_owned(), "source.sasl.token_env", None),
        TokenSource::File(file) => {
            let text = std::fs::read_to_string(file).map_err(|error| {
                format!("the file \"{}\" named by source.sasl.token_file cannot be read: {error}", file.display())
            })?;
            (text.trim().to_owned(), "source.sasl.token_file", None)
        }
        TokenSource::Endpoint(endpoint) => {
            let granted = ask(endpoint).map_err(|why| format!("{}: {why}", endpoint.url))?;
            let lifetime = granted.expires_in.map(Duration::from_secs);
            (granted.access_token, "source.sasl.token_endpoint", lifetime)
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    with_lifetime(token, lifetime, now).map_err(|why| format!("the token of {place} {why}"))
}

/// Claims of a JSON Web Token (RFC 7519) that matter here.
#[derive(Default, Deserialize)]
struct Claims {
    sub: Option<String>,
    /// Seconds since 1970.
    exp: Option<f64>,
}

fn claims(token: &str) -> Option<Claims> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// `lifetime`: as told beside the token; a token may tell its end itself, or not at all.
fn with_lifetime(token: String, lifetime: Option<Duration>, now: Duration) -> Result<OAuthToken, &'static str> {
    if token.is_empty() {
        return Err("is empty");
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has characters that no token has");
    }
    let claims = claims(&token).unwrap_or_default();
    let end = match (claims.exp, lifetime) {
        (Some(end), _) => Duration::try_from_secs_f64(end).map_err(|_| "has an impossible end")?,
        (None, lifetime) => now.saturating_add(lifetime.unwrap_or(UNKNOWN_LIFETIME)),
    };
    if end <= now {
        return Err("has expired");
    }
    Ok(OAuthToken {
        token,
        principal_name: claims.sub.unwrap_or_else(|| "tally-loader".into()),
        lifetime_ms: i64::try_from(end.as_millis()).unwrap_or(i64::MAX),
    })
}

/// The answer of an authorisation server (RFC 6749, section 5.1).
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    /// Seconds.
    expires_in: Option<u64>,
}

/// The same when it refuses (section 5.2). Its description may repeat the request, so it is left out.
#[derive(Default, Deserialize)]
struct Refusal {
    error: String,
}

fn ask(endpoint: &TokenEndpoint) -> Result<Granted, String> {
    let roots = match &endpoint.ca_file {
        None => RootCerts::PlatformVerifier,
        Some(file) => RootCerts::new_with_certs(&certificates(file)?),
    };
    let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).build();
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .https_only(true)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .tls_config(tls)
        .build()
        .new_agent();
    let secret = endpoint.client_secret.as_ref().map_or("", |secret| secret.reveal());
    let form = [("grant_type", "client_credentials"), ("client_id", &endpoint.client_id), ("client_secret", secret)];
    let form = form.into_iter().chain(endpoint.scope.as_deref().map(|scope| ("scope", scope)));
    let mut answer = agent.post(&endpoint.url).send_form(form).map_err(|error| error.to_string())?;
    let body = answer.body_mut().read_to_vec().map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let error: String = refusal.error.chars().filter(char::is_ascii_graphic).take(100).collect();
        return Err(format!("the authorisation server answers {} {error}", answer.status().as_u16()));
    }
    serde_json::from_slice(&body).map_err(|_| "the answer of the authorisation server has no access_token".to_owned())
}

fn certificates(file: &std::path::Path) -> Result<Vec<Certificate<'static>>, String> {
    let key = "source.sasl.token_endpoint.ca_file";
    let pem = std::fs::read(file).map_err(|error| format!("{key} cannot be read: {error}"))?;
    let found = parse_pem(&pem).filter_map(|item| match item {
        Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let found: Vec<_> = found.collect();
    if found.is_empty() { Err(format!("{key} holds no certificate")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const NOW: Duration = Duration::from_secs(1_000);

    fn jwt(claims: &str) -> String {
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_tells_its_end_and_its_owner() {
        let token = with_lifetime(jwt(r#"{"sub":"loader","exp":1060}"#), None, NOW).unwrap();
        assert_eq!((token.principal_name.as_str(), token.lifetime_ms), ("loader", 1_060_000));
        let token = with_lifetime("opaque".into(), Some(Duration::from_secs(5)), NOW).unwrap();
        assert_eq!(token.lifetime_ms, 1_005_000);
        assert_eq!(with_lifetime("opaque".into(), None, NOW).unwrap().lifetime_ms, 4_600_000);
    }

    #[test]
    fn a_useless_token_is_refused_without_repeating_it() {
        let of = |token: &str| with_lifetime(token.into(), None, NOW).err();
        assert_eq!(of(&jwt(r#"{"exp":1000}"#)), Some("has expired"));
        assert_eq!(of(&jwt(r#"{"exp":-5}"#)), Some("has an impossible end"));
        assert_eq!(of(""), Some("is empty"));
        assert_eq!(of("two words"), Some("has characters that no token has"));
        let expired = TokenSource::Fixed(Secret::new(jwt(r#"{"exp":1}"#)));
        assert_eq!(token(&expired).err().unwrap(), "the token of source.sasl.token_env has expired");
    }
}
