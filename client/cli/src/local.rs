//! A cluster on this machine, as separate processes: what `dfs up` makes and `dfs down` stops.
//!
//! ```text
//! DIR/cluster.toml     what every client verb reads; written last, so a folder with it is complete
//! DIR/up.toml          what `dfs up` was asked for
//! DIR/initialized      the namenode group has been formed, which happens once
//! DIR/pki/             the cluster's authority and the administrator's certificate
//! DIR/nn1/             all state of a node: configuration, certificate, data   (dn1, m1 alike)
//! DIR/nn1.pid  .log    its process and what that says
//! DIR/nn1.start        a script that starts it again exactly as before
//! DIR/nn1.img          with --fs: the file system that is mounted on DIR/nn1
//! ```

pub mod images;
pub mod layout;
pub mod mounts;
pub mod netns;
pub mod ports;
pub mod process;
pub mod ready;
pub mod scaffold;
pub mod settings;
