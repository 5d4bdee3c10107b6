//! Mutual TLS 1.3 under the cluster's own authority. There is no mode without it.

use std::path::PathBuf;
use std::sync::Arc;

use dfs_proto::{PeerIdentity, Plane};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};

use crate::error::RpcError;

/// Where a process finds its own certificate and key, and the authority it trusts. PEM files.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// A loaded identity: what this process proves to its peers, and whom it believes.
#[derive(Clone)]
pub struct Tls {
    identity: PeerIdentity,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Tls {
    pub fn load(files: &TlsFiles) -> Result<Tls, RpcError> {
        let read = |path: &PathBuf, e: rustls_pki_types::pem::Error| RpcError::Tls(format!("{}: {e}", path.display()));
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(&files.ca).map_err(|e| read(&files.ca, e))? {
            roots.add(cert.map_err(|e| read(&files.ca, e))?).map_err(|e| RpcError::Tls(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(RpcError::Tls(format!("{}: no certificate in it", files.ca.display())));
        }
        let chain = CertificateDer::pem_file_iter(&files.cert)
            .and_then(|certs| certs.collect::<Result<Vec<_>, _>>())
            .map_err(|e| read(&files.cert, e))?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| read(&files.key, e))?;
        let identity = chain
            .first()
            .and_then(identity_of)
            .ok_or_else(|| RpcError::Tls(format!("{}: names no node of a cluster", files.cert.display())))?;
        Ok(Tls { identity, roots: Arc::new(roots), chain, key: Arc::new(key) })
    }

    pub fn identity(&self) -> PeerIdentity {
        self.identity
    }

    pub(crate) fn client_config(&self, plane: Plane) -> Result<rustls::ClientConfig, RpcError> {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unusable)?;
        config.alpn_protocols = vec![plane.alpn().to_vec()];
        Ok(config)
    }

    pub(crate) fn server_config(&self, planes: &[Plane]) -> Result<rustls::ServerConfig, RpcError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .build()
            .map_err(|e| RpcError::Tls(e.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unusable)?;
        config.alpn_protocols = planes.iter().map(|plane| plane.alpn().to_vec()).collect();
        // 0-RTT could be replayed by anyone who saw it: off.
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// What the one who dials finds out about the peer in a handshake: whether its certificate is of our authority and
    /// names just `expected`.
    pub(crate) fn verify_server(&self, peer: &Tls, expected: PeerIdentity) -> Result<(), String> {
        let (own, others) = peer.chain.split_first().ok_or("no certificate")?;
        let name = ServerName::try_from(expected.to_string()).map_err(|e| e.to_string())?;
        WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider())
            .build()
            .map_err(|e| e.to_string())?
            .verify_server_cert(own, others, &name, &[], UnixTime::now())
            .map(drop)
            .map_err(|e| e.to_string())
    }

    /// What the one who is dialled finds out: who the peer is, if its certificate is of our authority.
    pub(crate) fn verify_client(&self, peer: &Tls) -> Result<PeerIdentity, String> {
        let (own, others) = peer.chain.split_first().ok_or("no certificate")?;
        WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .build()
            .map_err(|e| e.to_string())?
            .verify_client_cert(own, others, UnixTime::now())
            .map_err(|e| e.to_string())?;
        identity_of(own).ok_or_else(|| "the certificate names no node".into())
    }

    /// A secret of this certificate's holder that survives a restart, for one named purpose.
    pub(crate) fn derive_secret(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, self.key.secret_der())
    }
}

/// Reads who the holder of a certificate is. The chain has been verified by rustls before this.
pub(crate) fn identity_of(cert: &CertificateDer<'static>) -> Option<PeerIdentity> {
    let cert = webpki::EndEntityCert::try_from(cert).ok()?;
    cert.valid_dns_names().find_map(PeerIdentity::parse)
}

/// One provider for both sides, whatever else a process may have installed.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(error: rustls::Error) -> RpcError {
    RpcError::Tls(error.to_string())
}
