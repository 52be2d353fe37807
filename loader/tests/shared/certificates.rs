//! Certificates for the servers of a test: an authority, what it signed, and an authority that nobody trusts.

use std::fs;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

/// Files in PEM, below one folder.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes them in this folder, which must exist. The server's is for the address 127.0.0.1 and for no name.
    pub fn create(folder: &Path) -> Self {
        let certificates = Self { folder: folder.to_owned() };
        let authority = Authority::new("tally tests");
        let stranger = Authority::new("a stranger");
        certificates.write("authority.pem", &[&authority.certificate], None);
        certificates.write("stranger.pem", &[&stranger.certificate], None);
        let (certificate, key) = authority.sign("server", Some("127.0.0.1"));
        certificates.write("server.pem", &[&certificate], Some(&key));
        let (certificate, key) = authority.sign("loader", None);
        certificates.write("client.pem", &[&certificate], None);
        certificates.write("client.key", &[], Some(&key));
        let (certificate, key) = stranger.sign("loader", None);
        certificates.write("false-client.pem", &[&certificate], None);
        certificates.write("false-client.key", &[], Some(&key));
        certificates
    }

    /// `authority.pem`, `stranger.pem`; `server.pem` (with its key); `client.pem`, `client.key`; `false-client.pem`, `false-client.key`.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    fn write(&self, file: &str, certificates: &[&X509], key: Option<&PKey<Private>>) {
        // Kafka takes the key before or after, but only as PKCS #8.
        let mut pem = key.map_or_else(Vec::new, |key| key.private_key_to_pem_pkcs8().expect("a key in PEM"));
        certificates.iter().for_each(|certificate| pem.extend(certificate.to_pem().expect("a certificate in PEM")));
        fs::write(self.path(file), pem).expect("the folder takes a file");
    }
}

struct Authority {
    name: String,
    certificate: X509,
    key: PKey<Private>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = new_key();
        let mut builder = builder(name, name, &key);
        builder
            .append_extension(BasicConstraints::new().critical().ca().build().expect("an extension"))
            .expect("added");
        builder.sign(&key, MessageDigest::sha256()).expect("a signature");
        Self { name: name.to_owned(), certificate: builder.build(), key }
    }

    /// `address`: where a server with this certificate may be.
    fn sign(&self, name: &str, address: Option<&str>) -> (X509, PKey<Private>) {
        let key = new_key();
        let mut builder = builder(name, &self.name, &key);
        if let Some(address) = address {
            let context = builder.x509v3_context(Some(&self.certificate), None);
            let extension = SubjectAlternativeName::new().ip(address).build(&context).expect("an extension");
            builder.append_extension(extension).expect("added");
        }
        builder.sign(&self.key, MessageDigest::sha256()).expect("a signature");
        (builder.build(), key)
    }
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key")
}

fn builder(name: &str, issuer: &str, key: &PKey<Private>) -> X509Builder {
    let named = |name: &str| {
        let mut builder = X509NameBuilder::new().expect("a name");
        builder.append_entry_by_nid(Nid::COMMONNAME, name).expect("a name");
        builder.build()
    };
    let mut builder = X509::builder().expect("a certificate");
    let mut serial = BigNum::new().expect("a number");
    serial.rand(127, MsbOption::MAYBE_ZERO, false).expect("a random number");
    let days = |days| Asn1Time::days_from_now(days).expect("a time");
    builder.set_version(2).expect("a version");
    builder.set_serial_number(&serial.to_asn1_integer().expect("a number")).expect("a serial number");
    builder.set_subject_name(&named(name)).expect("a subject");
    builder.set_issuer_name(&named(issuer)).expect("an issuer");
    builder.set_not_before(&days(0)).expect("a time");
    builder.set_not_after(&days(2)).expect("a time");
    builder.set_pubkey(key).expect("a key");
    builder
}
