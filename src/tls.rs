//! TLS: the certificates that a builder was given, the crypto provider, and what rustls refuses.
//!
//! redis-rs panics where rustls has no crypto provider, or two to choose from. So every client with
//! TLS, also a user's own, passes through [`Certificates::apply`], which sees to it that there is
//! one.

use redis::{ConnectionAddr, ConnectionInfo, RedisError};

use crate::error::Error;

#[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
use self::with_rustls as how;
#[cfg(not(any(feature = "tls", feature = "tls-aws-lc-rs")))]
use self::without as how;

pub(crate) use self::how::Certificates;

impl Certificates {
    /// The same settings with these certificates, ready to be connected with.
    pub(crate) fn apply(&self, info: ConnectionInfo) -> Result<ConnectionInfo, Error> {
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            self.prepare(info)
        } else if self.are_given() {
            Err(Error::invalid(
                None,
                "certificates are of no use without TLS: use a rediss:// url",
            ))
        } else {
            Ok(info)
        }
    }
}

/// Refuses a URL that asks for TLS where it is not compiled in, before redis-rs does so in words of
/// its own.
pub(crate) fn check_url(url: &str) -> Result<(), Error> {
    if is_wanted(url) { how::check() } else { Ok(()) }
}

/// Whether a URL asks for TLS.
pub(crate) fn is_wanted(url: &str) -> bool {
    redis::parse_redis_url(url).is_some_and(|url| matches!(url.scheme(), "rediss" | "valkeys"))
}

/// Whether one side refuses the other's certificate, or cannot agree with it on how to speak TLS.
/// A new connection would end in the same way.
pub(crate) fn is_refusal(error: &RedisError) -> bool {
    how::is_refusal(error)
}

/// Whether what the server sent is not TLS.
pub(crate) fn is_not_tls(error: &RedisError) -> bool {
    how::is_not_tls(error)
}

#[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
mod with_rustls {
    use std::error::Error as StdError;
    use std::fmt;
    use std::io;
    use std::sync::Arc;

    use redis::{Client, ClientTlsConfig, ConnectionInfo, RedisError, TlsCertificates};
    use rustls::crypto::CryptoProvider;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{AlertDescription, ClientConfig, RootCertStore};

    use crate::error::{Cause, Error};

    const ROOTS: &str = "the root certificates are not usable";
    const CLIENT: &str = "the client certificate or its key is not usable";

    /// The certificates of a builder.
    #[derive(Clone, Default)]
    pub(crate) struct Certificates {
        /// Of the authorities that servers are trusted by, in place of the system's.
        roots: Option<Vec<u8>>,
        client: Option<ClientTlsConfig>,
    }

    impl Certificates {
        pub(crate) fn set_roots(&mut self, pem: Vec<u8>) {
            self.roots = Some(pem);
        }

        pub(crate) fn set_client(&mut self, certificate_pem: Vec<u8>, key_pem: Vec<u8>) {
            self.client = Some(ClientTlsConfig {
                client_cert: certificate_pem,
                client_key: key_pem,
            });
        }

        pub(super) fn are_given(&self) -> bool {
            self.roots.is_some() || self.client.is_some()
        }

        pub(super) fn prepare(&self, info: ConnectionInfo) -> Result<ConnectionInfo, Error> {
            install_provider();
            if let Some(roots) = &self.roots {
                check_roots(roots)?;
            }
            if let Some(client) = &self.client {
                check_client(client)?;
            }
            if !self.are_given() {
                return Ok(info);
            }
            let certificates = TlsCertificates {
                root_cert: self.roots.clone(),
                client_tls: self.client.clone(),
            };
            let client = Client::build_with_tls(info, certificates);
            let client = client.map_err(|error| unusable(ROOTS, error))?;
            Ok(client.get_connection_info().clone())
        }
    }

    // It tells neither the key nor, for brevity, the rest.
    impl fmt::Debug for Certificates {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Certificates")
                .field("roots", &self.roots.is_some())
                .field("client", &self.client.is_some())
                .finish()
        }
    }

    pub(super) fn check() -> Result<(), Error> {
        Ok(())
    }

    fn install_provider() {
        if CryptoProvider::get_default().is_none() {
            #[cfg(feature = "tls")]
            let provider = rustls::crypto::ring::default_provider();
            #[cfg(not(feature = "tls"))]
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            // Somebody else may have been faster. Any will do.
            let _ = provider.install_default();
        }
    }

    fn check_roots(pem: &[u8]) -> Result<(), Error> {
        let mut store = RootCertStore::empty();
        for root in chain(pem, ROOTS)? {
            store.add(root).map_err(|error| unusable(ROOTS, error))?;
        }
        Ok(())
    }

    fn check_client(client: &ClientTlsConfig) -> Result<(), Error> {
        let chain = chain(&client.client_cert, CLIENT)?;
        let key = PrivateKeyDer::from_pem_slice(&client.client_key);
        let key = key.map_err(|error| unusable(CLIENT, error))?;
        let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
        let config = config.with_client_auth_cert(chain, key);
        config.map(drop).map_err(|error| unusable(CLIENT, error))
    }

    fn chain(pem: &[u8], problem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(|error| unusable(problem, error))?;
        if chain.is_empty() {
            let problem = format!("{problem}: there is no certificate in the PEM");
            return Err(Error::invalid(None, problem));
        }
        Ok(chain)
    }

    fn unusable(problem: &str, cause: impl StdError + Send + Sync + 'static) -> Error {
        Error::Invalid {
            key: None,
            problem: problem.to_owned(),
            source: Some(Cause::new(cause)),
        }
    }

    pub(super) fn is_refusal(error: &RedisError) -> bool {
        match inner(error) {
            Some(
                rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::UnsupportedNameType
                | rustls::Error::PeerIncompatible(_),
            ) => true,
            Some(rustls::Error::AlertReceived(alert)) => REFUSALS.contains(alert),
            _ => false,
        }
    }

    pub(super) fn is_not_tls(error: &RedisError) -> bool {
        matches!(inner(error), Some(rustls::Error::InvalidMessage(_)))
    }

    /// The alerts of a server that would send them again. The others tell of a fault on the way, or
    /// of one that it may get out of.
    const REFUSALS: [AlertDescription; 15] = [
        AlertDescription::AccessDenied,
        AlertDescription::BadCertificate,
        AlertDescription::CertificateExpired,
        AlertDescription::CertificateRequired,
        AlertDescription::CertificateRevoked,
        AlertDescription::CertificateUnknown,
        // The signature of a certificate is wrong.
        AlertDescription::DecryptError,
        // With TLS 1.2 also: a certificate is required.
        AlertDescription::HandshakeFailure,
        AlertDescription::InsufficientSecurity,
        AlertDescription::NoApplicationProtocol,
        AlertDescription::NoCertificate,
        AlertDescription::ProtocolVersion,
        AlertDescription::UnknownCA,
        AlertDescription::UnrecognisedName,
        AlertDescription::UnsupportedCertificate,
    ];

    fn inner(error: &RedisError) -> Option<&rustls::Error> {
        let shared = error.source()?;
        let shared = shared.downcast_ref::<Arc<dyn StdError + Send + Sync>>()?;
        let inner = shared.downcast_ref::<io::Error>()?.get_ref()?;
        inner.downcast_ref()
    }
}

#[cfg(not(any(feature = "tls", feature = "tls-aws-lc-rs")))]
mod without {
    use redis::{ConnectionInfo, RedisError};

    use crate::error::Error;

    /// There are none.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Certificates;

    #[allow(clippy::unused_self, reason = "as with TLS")]
    impl Certificates {
        pub(super) fn are_given(&self) -> bool {
            false
        }

        pub(super) fn prepare(&self, info: ConnectionInfo) -> Result<ConnectionInfo, Error> {
            check().map(|()| info)
        }
    }

    pub(super) fn check() -> Result<(), Error> {
        Err(Error::invalid(
            None,
            "TLS is not compiled in: switch on the cargo feature `tls` of redlease",
        ))
    }

    pub(super) fn is_refusal(_: &RedisError) -> bool {
        false
    }

    pub(super) fn is_not_tls(_: &RedisError) -> bool {
        false
    }
}

#[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
#[cfg(test)]
mod tests {
    use std::io;

    use rustls::{
        AlertDescription, CertificateError, InvalidMessage, PeerIncompatible, PeerMisbehaved,
    };

    use super::*;

    fn error(error: rustls::Error) -> RedisError {
        io::Error::new(io::ErrorKind::InvalidData, error).into()
    }

    #[test]
    fn a_refused_certificate_stays_refused() {
        for refusal in [
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
            rustls::Error::InvalidCertificate(CertificateError::NotValidForName),
            rustls::Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon),
            rustls::Error::AlertReceived(AlertDescription::UnknownCA),
            rustls::Error::AlertReceived(AlertDescription::CertificateRequired),
        ] {
            assert!(is_refusal(&error(refusal.clone())), "{refusal}");
        }
    }

    #[test]
    fn a_fault_on_the_way_is_no_refusal() {
        for fault in [
            rustls::Error::AlertReceived(AlertDescription::CloseNotify),
            rustls::Error::AlertReceived(AlertDescription::InternalError),
            rustls::Error::AlertReceived(AlertDescription::BadRecordMac),
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType),
            rustls::Error::PeerMisbehaved(PeerMisbehaved::TooMuchEarlyDataReceived),
            rustls::Error::DecryptError,
        ] {
            assert!(!is_refusal(&error(fault.clone())), "{fault}");
        }
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(!is_refusal(&reset.into()));
    }
}
