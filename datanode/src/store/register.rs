//! `DATA_DIR/VOLUMES`: which volumes this node ever opened, so that one that is missing is missed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

const NAME: &str = "VOLUMES";
/// 1: path, disk, failed.
/// 2: added, draining, retired. A file of 1 is one of 2.
const VERSION: u32 = 2;

/// The file's content, rewritten whole with every change.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Register {
    version: u32,
    #[serde(default, rename = "volume")]
    volumes: Vec<Known>,
    #[serde(skip)]
    dir: PathBuf,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Known {
    pub path: PathBuf,
    /// The disk number in the volume's `IDENTITY`, in hexadecimal.
    pub disk: String,
    /// Why the volume was latched. An operator who has replaced or checked the disk takes it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Taken into use while the node ran: used at every start, whether the configuration names it or not.
    #[serde(default, skip_serializing_if = "is_false")]
    pub added: bool,
    /// Its replicas are being moved away.
    #[serde(default, skip_serializing_if = "is_false")]
    pub draining: bool,
    /// Emptied and out of use, whether the configuration names it or not.
    #[serde(default, skip_serializing_if = "is_false")]
    pub retired: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// What is known of a volume that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// It is one of this node's, perhaps latched earlier for this reason.
    Known(Option<String>),
    /// Another volume was at this place, and this one was never seen.
    Stranger,
}

impl Register {
    /// Reads the file; empty if there is none.
    pub fn load(dir: &Path) -> anyhow::Result<Register> {
        let path = dir.join(NAME);
        let mut register = match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("in {}", path.display()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Register { version: VERSION, volumes: Vec::new(), dir: PathBuf::new() }
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        ensure!(
            register.version <= VERSION,
            "{} is of version {}, newer than this program",
            path.display(),
            register.version
        );
        register.dir = dir.to_owned();
        Ok(register)
    }

    pub fn volumes(&self) -> &[Known] {
        &self.volumes
    }

    pub fn known(&self, path: &Path) -> Option<&Known> {
        self.volumes.iter().find(|known| known.path == path)
    }

    /// Notes where a volume was found: for the first time, at its place, or at a new one.
    pub fn found(&mut self, path: &Path, disk: u64) -> io::Result<Found> {
        let disk = format!("{disk:016x}");
        let elsewhere = self.known(path).is_some_and(|known| known.disk != disk);
        match self.volumes.iter_mut().find(|known| known.disk == disk) {
            Some(known) if known.path == path => return Ok(Found::Known(known.failed.clone())),
            Some(known) => known.path = path.to_owned(),
            None if elsewhere => return Ok(Found::Stranger),
            None => self.volumes.push(Known {
                path: path.to_owned(),
                disk: disk.clone(),
                failed: None,
                added: false,
                draining: false,
                retired: false,
            }),
        }
        self.save()?;
        let failed = self.volumes.iter().find(|known| known.disk == disk).and_then(|known| known.failed.clone());
        Ok(Found::Known(failed))
    }

    /// Remembers that a volume has failed. The first reason stays.
    pub fn set_failed(&mut self, path: &Path, reason: &str) -> io::Result<()> {
        match self.volumes.iter_mut().find(|known| known.path == path) {
            Some(known) if known.failed.is_none() => known.failed = Some(reason.to_owned()),
            _ => return Ok(()),
        }
        self.save()
    }

    /// Changes what is noted of the volume at `path`, if there is one.
    pub fn change(&mut self, path: &Path, change: impl FnOnce(&mut Known)) -> io::Result<()> {
        match self.volumes.iter_mut().find(|known| known.path == path) {
            Some(known) => change(known),
            None => return Ok(()),
        }
        self.save()
    }

    /// Forgets the volume at `path`: another disk takes its place.
    pub fn forget(&mut self, path: &Path) -> io::Result<()> {
        self.volumes.retain(|known| known.path != path);
        self.save()
    }

    fn save(&mut self) -> io::Result<()> {
        self.version = VERSION;
        let text = toml::to_string(&*self).map_err(io::Error::other)?;
        let temporary = self.dir.join(format!("{NAME}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, self.dir.join(NAME))?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_volume_survives_and_its_first_failure_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = Path::new("/disk1");
        let mut register = Register::load(dir.path()).unwrap();
        assert_eq!(register.found(path, 255).unwrap(), Found::Known(None));
        register.set_failed(path, "first").unwrap();
        register.set_failed(path, "second").unwrap();
        let mut again = Register::load(dir.path()).unwrap();
        assert_eq!(again.known(path).unwrap().failed.as_deref(), Some("first"));
        assert_eq!(again.volumes()[0].disk, "00000000000000ff");
        assert_eq!(again.found(path, 7).unwrap(), Found::Stranger);
    }

    #[test]
    fn a_file_of_version_one_is_read_and_what_is_changed_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let text = "version = 1\n\n[[volume]]\npath = \"/disk1\"\ndisk = \"00000000000000ff\"\n";
        fs::write(dir.path().join(NAME), text).unwrap();
        let mut register = Register::load(dir.path()).unwrap();
        let path = Path::new("/disk1");
        assert!(!register.known(path).unwrap().added);
        register.change(path, |known| (known.draining, known.retired) = (true, false)).unwrap();
        assert!(Register::load(dir.path()).unwrap().known(path).unwrap().draining);
        register.forget(path).unwrap();
        assert!(Register::load(dir.path()).unwrap().known(path).is_none());
    }

    #[test]
    fn volumes_that_changed_places_are_known_by_their_disks() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = [Path::new("/a"), Path::new("/b")];
        let mut register = Register::load(dir.path()).unwrap();
        register.found(a, 1).unwrap();
        register.found(b, 2).unwrap();
        register.set_failed(b, "worn out").unwrap();
        assert_eq!(register.found(a, 2).unwrap(), Found::Known(Some("worn out".into())));
        assert_eq!(register.found(b, 1).unwrap(), Found::Known(None));
        assert_eq!(register.volumes().len(), 2);
    }
}
