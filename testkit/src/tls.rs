//! Certificates of our own, and servers that listen with TLS beside their plain port.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use tempfile::TempDir;

/// The names that servers of ours are reached by.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A certificate authority. What it issues is in files, which end with the value.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
    issued: AtomicU32,
}

/// A certificate and its key, in files of the [`Authority`] that issued it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The file with the certificate.
    pub certificate: PathBuf,
    /// The file with its private key.
    pub key: PathBuf,
}

/// How a server listens with TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    identity: Identity,
    root: PathBuf,
    options: Vec<&'static str>,
}

impl Authority {
    /// An authority that nobody knows yet.
    #[allow(clippy::new_without_default, reason = "each has a key of its own")]
    pub fn new() -> Self {
        let mut params = params(&[], "redlease test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(root_file(&folder), issuer.pem()).expect("a file of our folder");
        Self {
            issuer,
            folder,
            issued: AtomicU32::new(0),
        }
    }

    /// Its own certificate, as PEM.
    pub fn root(&self) -> String {
        self.issuer.pem()
    }

    /// The file with its own certificate.
    pub fn root_file(&self) -> PathBuf {
        root_file(&self.folder)
    }

    /// A certificate for a server on the loopback interface.
    pub fn server(&self) -> Identity {
        self.issue(params(&LOOPBACK, "redlease test server"))
    }

    /// A certificate for a server of another name.
    pub fn server_named(&self, host: &str) -> Identity {
        self.issue(params(&[host], "redlease test server elsewhere"))
    }

    /// A certificate for a server on the loopback interface that ended long ago.
    pub fn expired_server(&self) -> Identity {
        let mut params = params(&LOOPBACK, "redlease expired test server");
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.issue(params)
    }

    /// A certificate for a client.
    pub fn client(&self) -> Identity {
        self.issue(params(&[], "redlease test client"))
    }

    fn issue(&self, params: CertificateParams) -> Identity {
        let name = self.issued.fetch_add(1, Ordering::Relaxed);
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer);
        let identity = Identity {
            certificate: self.folder.path().join(format!("{name}.crt")),
            key: self.folder.path().join(format!("{name}.key")),
        };
        let pem = certificate.expect("a certificate").pem();
        fs::write(&identity.certificate, pem).expect("a file of our folder");
        fs::write(&identity.key, key.serialize_pem()).expect("a file of our folder");
        identity
    }
}

impl Identity {
    /// The certificate, as PEM.
    pub fn certificate_pem(&self) -> String {
        fs::read_to_string(&self.certificate).expect("a file of the authority")
    }

    /// The private key, as PEM.
    pub fn key_pem(&self) -> String {
        fs::read_to_string(&self.key).expect("a file of the authority")
    }
}

impl Tls {
    /// With a certificate that says who the server is. Clients need none.
    pub fn new(authority: &Authority, identity: Identity) -> Self {
        Self {
            identity,
            root: authority.root_file(),
            options: vec!["--tls-auth-clients", "no"],
        }
    }

    /// Clients need a certificate of the same authority.
    #[must_use]
    pub fn with_clients_certificates(mut self) -> Self {
        self.options.extend(["--tls-auth-clients", "yes"]);
        self
    }

    /// The newest version of TLS is 1.2.
    #[must_use]
    pub fn at_most_1_2(mut self) -> Self {
        self.options.extend(["--tls-protocols", "TLSv1.2"]);
        self
    }

    /// What a server is started with.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let file = |path: &Path| path.display().to_string();
        let mut arguments = vec![
            "--tls-cert-file".to_owned(),
            file(&self.identity.certificate),
        ];
        arguments.extend(["--tls-key-file".to_owned(), file(&self.identity.key)]);
        arguments.extend(["--tls-ca-cert-file".to_owned(), file(&self.root)]);
        arguments.extend(self.options.iter().map(|&option| option.to_owned()));
        arguments
    }
}

fn params(names: &[&str], common_name: &str) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names of hosts");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn root_file(folder: &TempDir) -> PathBuf {
    folder.path().join("root.crt")
}
