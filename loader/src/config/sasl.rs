//! Login and TLS of the brokers: `source.sasl` and `source.tls`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Profile, Secret};
use crate::{Error, Result};

/// What Azure Event Hubs wants as user name, literally, when the password is a connection string.
const CONNECTION_STRING: &str = "$ConnectionString";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    pub mechanism: Mechanism,
    username_env: Option<String>,
    username_file: Option<PathBuf>,
    password_env: Option<String>,
    password_file: Option<PathBuf>,
    token_env: Option<String>,
    token_file: Option<PathBuf>,
    token_endpoint: Option<TokenEndpoint>,
    /// What the keys above lead to; there once the configuration is loaded.
    #[serde(skip)]
    pub credentials: Option<Credentials>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

impl Mechanism {
    /// The name in the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// Who the loader is to the brokers.
#[derive(Clone, Debug)]
pub enum Credentials {
    Password { username: Secret, password: Secret },
    Token(TokenSource),
}

/// Where the token of OAUTHBEARER comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    Fixed(Secret),
    /// Read again when the last token is about to expire.
    File(PathBuf),
    Endpoint(TokenEndpoint),
}

/// An authorisation server that gives tokens for client credentials (RFC 6749, section 4.4).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEndpoint {
    /// An `https` URL.
    pub url: String,
    pub client_id: String,
    pub scope: Option<String>,
    /// Certificates to trust, PEM; without it those of the system. Those of the brokers are another matter.
    pub ca_file: Option<PathBuf>,
    client_secret_env: Option<String>,
    client_secret_file: Option<PathBuf>,
    #[serde(skip)]
    pub client_secret: Option<Secret>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificates to trust, PEM; without it those of the system.
    pub ca_file: Option<PathBuf>,
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    key_password_env: Option<String>,
    key_password_file: Option<PathBuf>,
    #[serde(skip)]
    pub key_password: Option<Secret>,
}

impl Sasl {
    /// Checks that the keys are those of the mechanism, and reads the secrets they name.
    pub(super) fn complete(&mut self, profile: Profile) -> Result<()> {
        let credentials = match self.mechanism {
            Mechanism::OauthBearer => Credentials::Token(self.token_source()?),
            _ => self.password(profile)?,
        };
        self.credentials = Some(credentials);
        Ok(())
    }

    fn password(&self, profile: Profile) -> Result<Credentials> {
        self.refuse(&[
            ("token_env", self.token_env.is_some()),
            ("token_file", self.token_file.is_some()),
            ("token_endpoint", self.token_endpoint.is_some()),
        ])?;
        let (variable, file) = (self.username_env.as_deref(), self.username_file.as_deref());
        let username = match Secret::read("source.sasl.username", variable, file)? {
            None if profile == Profile::EventHubs && self.mechanism == Mechanism::Plain => {
                Some(Secret::new(CONNECTION_STRING))
            }
            username => username,
        };
        let (variable, file) = (self.password_env.as_deref(), self.password_file.as_deref());
        let password = Secret::read("source.sasl.password", variable, file)?;
        match (username, password) {
            (Some(username), Some(password)) => Ok(Credentials::Password { username, password }),
            (None, _) => Err(self.lacks("username_env or username_file")),
            (_, None) => Err(self.lacks("password_env or password_file")),
        }
    }

    fn token_source(&self) -> Result<TokenSource> {
        self.refuse(&[
            ("username_env", self.username_env.is_some()),
            ("username_file", self.username_file.is_some()),
            ("password_env", self.password_env.is_some()),
            ("password_file", self.password_file.is_some()),
        ])?;
        let given = Secret::read("source.sasl.token", self.token_env.as_deref(), self.token_file.as_deref())?;
        match (given, &self.token_file, &self.token_endpoint) {
            (Some(_), _, Some(_)) => Err(Error::unfit(
                "source.sasl.token_endpoint goes neither with source.sasl.token_env nor with source.sasl.token_file",
            )),
            (Some(_), Some(file), None) => Ok(TokenSource::File(file.clone())),
            (Some(token), None, None) => Ok(TokenSource::Fixed(token)),
            (None, _, Some(endpoint)) => Ok(TokenSource::Endpoint(endpoint.clone().complete()?)),
            (None, _, None) => Err(self.lacks("token_env, token_file or token_endpoint")),
        }
    }

    fn refuse(&self, keys: &[(&str, bool)]) -> Result<()> {
        match keys.iter().find(|(_, is_set)| *is_set) {
            None => Ok(()),
            Some((key, _)) => {
                Err(Error::unfit(format!("source.sasl.{key} does not go with mechanism {}", self.mechanism.as_str())))
            }
        }
    }

    fn lacks(&self, keys: &str) -> Error {
        Error::unfit(format!("source.sasl needs {keys} for mechanism {}", self.mechanism.as_str()))
    }
}

impl TokenEndpoint {
    fn complete(mut self) -> Result<Self> {
        // The client secret travels in the request.
        if !self.url.starts_with("https://") {
            return Err(Error::unfit("source.sasl.token_endpoint.url must begin with https://"));
        }
        let (variable, file) = (self.client_secret_env.as_deref(), self.client_secret_file.as_deref());
        self.client_secret = Secret::read("source.sasl.token_endpoint.client_secret", variable, file)?;
        if self.client_secret.is_none() {
            return Err(Error::unfit("source.sasl.token_endpoint needs client_secret_env or client_secret_file"));
        }
        readable("source.sasl.token_endpoint.ca_file", self.ca_file.as_deref())?;
        Ok(self)
    }
}

impl Tls {
    pub(super) fn complete(&mut self) -> Result<()> {
        readable("source.tls.ca_file", self.ca_file.as_deref())?;
        readable("source.tls.certificate_file", self.certificate_file.as_deref())?;
        readable("source.tls.key_file", self.key_file.as_deref())?;
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return Err(Error::unfit("source.tls.certificate_file and source.tls.key_file go together only"));
        }
        let (variable, file) = (self.key_password_env.as_deref(), self.key_password_file.as_deref());
        self.key_password = Secret::read("source.tls.key_password", variable, file)?;
        Ok(())
    }
}

/// A library that cannot read the file would name its own setting, not the key of our file.
pub(super) fn readable(key: &str, file: Option<&Path>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::read(file).map(|_| ()).map_err(|error| {
        Error::unfit(format!("the file \"{}\" named by {key} cannot be read: {error}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// The section `source` with these lines; `SECRET` is a file.
    fn parse(source: &str) -> Result<Config> {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "hunter2\n").unwrap();
        let source = source.replace("SECRET", secret.path().to_str().unwrap());
        let kafka = if source.contains("kafka =") { "" } else { "kafka = { brokers = [\"k:9093\"], topic = \"t\" }" };
        Config::parse(&format!(
            "pipeline = \"p\"\npostgres = {{ host = \"/tmp\", dbname = \"d\", user = \"u\" }}\n[source]\n{kafka}\n{source}\n\
             [target]\ntable = \"t\"\n"
        ))
    }

    #[test]
    fn wrong_and_missing_keys_are_named() {
        for (source, wanted) in [
            ("sasl = { mechanism = \"DIGEST-MD5\" }", "unknown variant `DIGEST-MD5`"),
            ("sasl = { mechanism = \"PLAIN\", token = \"x\" }", "unknown field `token`"),
            ("sasl = { mechanism = \"PLAIN\", password_file = \"SECRET\" }", "username_env or username_file"),
            ("sasl = { mechanism = \"SCRAM-SHA-256\", username_file = \"SECRET\" }", "password_env or password_file"),
            ("sasl = { mechanism = \"PLAIN\", token_file = \"SECRET\" }", "source.sasl.token_file does not go with"),
            ("sasl = { mechanism = \"OAUTHBEARER\" }", "token_env, token_file or token_endpoint"),
            (
                "sasl = { mechanism = \"OAUTHBEARER\", token_file = \"SECRET\", username_file = \"SECRET\" }",
                "source.sasl.username_file does not go with mechanism OAUTHBEARER",
            ),
            ("sasl = { mechanism = \"OAUTHBEARER\", token_env = \"NOT_SET_ANYWHERE\" }", "source.sasl.token_env"),
            ("sasl = { mechanism = \"OAUTHBEARER\", token_file = \"/no/such\" }", "source.sasl.token_file"),
            (
                "sasl = { mechanism = \"OAUTHBEARER\", token_endpoint = { url = \"http://a\", client_id = \"c\" } }",
                "source.sasl.token_endpoint.url must begin with https://",
            ),
            (
                "sasl = { mechanism = \"OAUTHBEARER\", token_endpoint = { url = \"https://a\", client_id = \"c\" } }",
                "client_secret_env or client_secret_file",
            ),
            (
                "sasl = { mechanism = \"OAUTHBEARER\", token_endpoint = { url = \"https://a\", client = \"c\" } }",
                "unknown field `client`",
            ),
            (
                "sasl = { mechanism = \"OAUTHBEARER\", token_file = \"SECRET\", token_endpoint = { url = \"https://a\", \
                 client_id = \"c\", client_secret_file = \"SECRET\" } }",
                "source.sasl.token_endpoint goes neither",
            ),
            ("tls = { ca_file = \"/no/such\" }", "source.tls.ca_file"),
            ("tls = { certificate_file = \"SECRET\" }", "source.tls.key_file"),
            ("tls = { certificate = \"SECRET\" }", "unknown field `certificate`"),
            (
                "kafka = { brokers = [\"k:9093\"], topic = \"t\", profile = \"event-hubs\" }",
                "\"event-hubs\" needs source.sasl",
            ),
        ] {
            let error = parse(source).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(wanted) && error.code() == 3, "{source}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn secrets_of_tokens_are_never_printed() {
        for source in [
            "sasl = { mechanism = \"OAUTHBEARER\", token_file = \"SECRET\" }",
            "sasl = { mechanism = \"OAUTHBEARER\", token_endpoint = { url = \"https://a\", client_id = \"c\", \
             client_secret_file = \"SECRET\" } }",
            "sasl = { mechanism = \"SCRAM-SHA-512\", username_file = \"SECRET\", password_file = \"SECRET\" }",
        ] {
            let printed = format!("{:?}", parse(source).unwrap());
            assert!(!printed.contains("hunter2"), "{printed}");
        }
    }

    #[test]
    fn event_hubs_knows_the_user_of_a_connection_string() {
        let source = "kafka = { brokers = [\"k:9093\"], topic = \"t\", profile = \"event-hubs\" }
             sasl = { mechanism = \"PLAIN\", password_file = \"SECRET\" }";
        let config = parse(source).unwrap();
        let Some(Credentials::Password { username, .. }) = config.source.sasl.unwrap().credentials else {
            panic!("PLAIN has a password");
        };
        assert_eq!(username.reveal(), "$ConnectionString");
    }
}
