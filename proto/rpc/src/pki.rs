//! The cluster's own certificate authority: one key that signs the certificates of every node and client.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use dfs_proto::{ClusterId, NodeId, PeerIdentity, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

const CERT: &str = "ca.pem";
const KEY: &str = "ca.key";
const CLUSTER: &str = "cluster";

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("{path}: {source}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{0} holds no cluster id")]
    NoCluster(String),
}

/// Signs certificates for one cluster.
pub struct Authority {
    cluster: ClusterId,
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, as PEM text.
pub struct Issued {
    pub cert_pem: String,
    pub key_pem: String,
}

impl Authority {
    pub fn create(cluster: ClusterId) -> Result<Authority, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("dfs cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Authority { cluster, cert_pem, issuer: Issuer::new(params, key) })
    }

    /// Loads what `save` wrote.
    pub fn load(dir: &Path) -> Result<Authority, PkiError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| PkiError::Io { path: path.display().to_string(), source })
        };
        let cert_pem = read(CERT)?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, KeyPair::from_pem(&read(KEY)?)?)?;
        let cluster = read(CLUSTER)?.trim().parse();
        let cluster = cluster.map_err(|_| PkiError::NoCluster(dir.join(CLUSTER).display().to_string()))?;
        Ok(Authority { cluster, cert_pem, issuer })
    }

    /// Writes `ca.pem`, `ca.key` (readable by the owner only) and `cluster` into an existing folder.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        write_private(&dir.join(KEY), &self.issuer.key().serialize_pem())?;
        write_private(&dir.join(CERT), &self.cert_pem)?;
        write_private(&dir.join(CLUSTER), &format!("{}\n", self.cluster))
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// A new key and a certificate that says who holds it.
    pub fn issue(&self, role: Role, id: NodeId) -> Result<Issued, PkiError> {
        let identity = PeerIdentity { cluster: self.cluster, role, id };
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![identity.to_string()])?;
        params.distinguished_name.push(DnType::CommonName, format!("dfs {} {id}", role.as_str()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { cert_pem, key_pem: key.serialize_pem() })
    }
}

impl Issued {
    /// Writes `NAME.pem` and `NAME.key`, both readable by the owner only.
    pub fn save(&self, dir: &Path, name: &str) -> Result<(), PkiError> {
        write_private(&dir.join(format!("{name}.key")), &self.key_pem)?;
        write_private(&dir.join(format!("{name}.pem")), &self.cert_pem)
    }
}

fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| PkiError::Io { path: path.display().to_string(), source })
}
