//! TLS to PostgreSQL, by the modes of libpq that do not give in silently.

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use postgres_openssl::MakeTlsConnector;

use crate::config::{Postgres, SslMode};

/// What the settings ask for. An error is about the certificates in files.
pub fn connector(settings: &Postgres, mode: SslMode) -> Result<MakeTlsConnector, ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    if let Some(path) = &settings.sslrootcert {
        // Instead of the authorities of the system, not beside them.
        builder.set_cert_store(X509StoreBuilder::new()?.build());
        builder.set_ca_file(path)?;
    }
    if let (Some(certificate), Some(key)) = (&settings.sslcert, &settings.sslkey) {
        builder.set_certificate_chain_file(certificate)?;
        builder.set_private_key_file(key, SslFiletype::PEM)?;
    }
    if mode == SslMode::Require {
        builder.set_verify(SslVerifyMode::NONE);
    }
    let mut connector = MakeTlsConnector::new(builder.build());
    if mode != SslMode::VerifyFull {
        connector.set_callback(|connection, _| {
            connection.set_verify_hostname(false);
            Ok(())
        });
    }
    Ok(connector)
}

/// Whether a handshake was refused by one of both sides, rather than cut off on its way.
pub fn is_refusal(error: &tokio_postgres::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        // The server's refusal of a certificate comes with the first answer after the handshake; an I/O error does not name what
        // it holds as its source.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let found = error.downcast_ref().or_else(|| inner?.downcast_ref::<openssl::ssl::Error>());
        if let Some(error) = found {
            return error.code() == openssl::ssl::ErrorCode::SSL;
        }
        cause = error.source();
    }
    false
}
