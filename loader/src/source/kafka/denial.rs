//! Login and TLS that do not succeed, in the words of this program: librdkafka names its own settings.

use rdkafka::error::RDKafkaErrorCode;

const LOGIN: &str = "Look at source.sasl: the mechanism, and user name and password, or token.";
const TOKEN: &str = "Look at the token_* keys of source.sasl.";
const BROKER_CERTIFICATE: &str = "Either source.tls.ca_file (without it: the system) does not have the authority that signed it, or \
                                  it is for another host name than that in source.kafka.brokers.";
const CLIENT_CERTIFICATE: &str =
    "Set source.tls.certificate_file and source.tls.key_file to a certificate that the brokers trust.";
const HANDSHAKE: &str = "Look at source.tls, and whether the port in source.kafka.brokers speaks TLS.";

/// Who refused what, and a sentence with the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    pub message: String,
    pub hint: &'static str,
}

/// What an error of librdkafka says of login or TLS; `None` when it is about something else. The reason looks like
/// `sasl_ssl://host:9093/bootstrap: SSL handshake failed: .. (after 3ms in state SSL_HANDSHAKE)`.
pub fn denial(code: Option<RDKafkaErrorCode>, reason: &str) -> Option<Denial> {
    if let Some((_, why)) = reason.split_once("Failed to acquire SASL OAUTHBEARER token: ") {
        return Some(Denial { message: format!("there is no token to log in with: {why}"), hint: TOKEN });
    }
    let (broker, text) = split(reason);
    let is_alert = text.contains("alert") && text.contains("certificate");
    let (message, hint) = match code {
        _ if is_alert || text.contains("client SSL authentication might be required") => {
            (format!("{broker} does not accept the certificate of this client: {text}"), CLIENT_CERTIFICATE)
        }
        _ if text.contains("certificate verify failed") || text.starts_with("Failed to verify broker certificate") => {
            // What follows names settings of librdkafka.
            (format!("the certificate of {broker} cannot be verified"), BROKER_CERTIFICATE)
        }
        Some(RDKafkaErrorCode::SSL) => (format!("no TLS with {broker}: {text}"), HANDSHAKE),
        Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => {
            (format!("{broker} refuses the login: {text}"), LOGIN)
        }
        _ => return None,
    };
    Some(Denial { message, hint })
}

/// The broker's address, and the text without it and without times.
fn split(reason: &str) -> (&str, &str) {
    let text = reason.rfind(" (after ").map_or(reason, |end| &reason[..end]);
    let Some((_, rest)) = text.split_once("://") else { return ("the broker", text) };
    match rest.split_once(": ") {
        Some((broker, text)) => (broker.split('/').next().unwrap_or(broker), text),
        None => ("the broker", text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_refusal_has_its_hint() {
        let of = |code, reason| denial(Some(code), reason).map(|denial| (denial.message, denial.hint));
        assert_eq!(
            of(
                RDKafkaErrorCode::Authentication,
                "sasl_ssl://127.0.0.1:9093/bootstrap: SASL authentication error: Authentication failed: Invalid username or \
                 password (after 12ms in state AUTH_REQ, 3 identical error(s) suppressed)"
            ),
            Some((
                "127.0.0.1:9093 refuses the login: SASL authentication error: Authentication failed: Invalid username or \
                 password"
                    .to_owned(),
                LOGIN
            ))
        );
        assert_eq!(
            of(
                RDKafkaErrorCode::SSL,
                "ssl://k:9093/1: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate \
                 could not be verified, verify that ssl.ca.location is correctly configured (after 3ms in state SSL_HANDSHAKE)"
            ),
            Some(("the certificate of k:9093 cannot be verified".to_owned(), BROKER_CERTIFICATE))
        );
        let alert = "ssl://k:9093/1: ssl/tls alert certificate required: error (after 3ms in state APIVERSION_QUERY)";
        assert_eq!(of(RDKafkaErrorCode::BrokerTransportFailure, alert).map(|found| found.1), Some(CLIENT_CERTIFICATE));
        assert_eq!(
            of(RDKafkaErrorCode::Authentication, "Failed to acquire SASL OAUTHBEARER token: it has expired"),
            Some(("there is no token to log in with: it has expired".to_owned(), TOKEN))
        );
        assert_eq!(of(RDKafkaErrorCode::BrokerTransportFailure, "ssl://k:9093/1: Disconnected"), None);
        assert_eq!(of(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down"), None);
    }
}
