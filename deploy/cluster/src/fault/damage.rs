//! Replicas that a disk returns wrongly. There is no undo: getting rid of such damage is what is tried.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::audit::DiskReplica;
use crate::dice::Dice;

/// What a disk does to a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Damage {
    /// One bit of the data.
    FlippedBit,
    /// One bit of an index entry.
    FlippedIndexBit,
    /// 512 bytes of the data that read as zeros.
    ZeroedSector,
    /// The end is missing.
    Truncated,
    /// There is something behind the end.
    Grown,
}

impl Damage {
    pub const ALL: [Damage; 5] =
        [Damage::FlippedBit, Damage::FlippedIndexBit, Damage::ZeroedSector, Damage::Truncated, Damage::Grown];

    pub fn text(self) -> &'static str {
        match self {
            Damage::FlippedBit => "a flipped bit",
            Damage::FlippedIndexBit => "a flipped bit in the index",
            Damage::ZeroedSector => "a zeroed sector",
            Damage::Truncated => "the end cut off",
            Damage::Grown => "garbage behind the end",
        }
    }
}

/// From datanode/FORMAT.md: where the index and the data of a chunk file begin, and how long an entry is.
const INDEX_START: u64 = 4096;
const ENTRY_BYTES: u64 = 64;
const DATA_START: u64 = 1_052_672;

const SECTOR: usize = 512;

/// Damages a chunk file in place. The modification time stays, as it does when a disk decays. Says what was done.
pub fn damage(replica: &DiskReplica, damage: Damage, dice: &mut Dice) -> Result<String> {
    ensure!(replica.len_bytes > 0, "{} holds nothing that could be damaged", replica.path.display());
    let path = &replica.path;
    let times = fs::metadata(path)?.modified()?;
    let file = OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())?;
    let at = apply(&file, replica, damage, dice).with_context(|| path.display().to_string())?;
    file.set_modified(times)?;
    file.sync_all()?;
    Ok(format!("{} at byte {at} of chunk {} on {}", damage.text(), replica.chunk, replica.node))
}

fn apply(file: &File, replica: &DiskReplica, damage: Damage, dice: &mut Dice) -> Result<u64> {
    let len = replica.len_bytes;
    match damage {
        Damage::FlippedBit => flip(file, DATA_START + dice.between(0, len - 1), dice),
        Damage::FlippedIndexBit => {
            // An entry has 8 bytes that carry nothing and are checked all the same.
            flip(file, INDEX_START + dice.between(0, replica.frames * ENTRY_BYTES - 1), dice)
        }
        Damage::ZeroedSector => {
            let sectors = len.div_ceil(SECTOR as u64);
            let at = DATA_START + dice.between(0, sectors - 1) * SECTOR as u64;
            let bytes = (DATA_START + len - at).min(SECTOR as u64) as usize;
            let mut old = vec![0; bytes];
            file.read_exact_at(&mut old, at)?;
            if old.iter().all(|byte| *byte == 0) {
                // Zeroed it would be as it was.
                return flip(file, at, dice);
            }
            file.write_all_at(&vec![0; bytes], at)?;
            Ok(at)
        }
        Damage::Truncated => {
            let at = DATA_START + dice.between(0, len - 1);
            file.set_len(at)?;
            Ok(at)
        }
        Damage::Grown => {
            let at = DATA_START + len;
            file.write_all_at(&[0xa5; SECTOR], at)?;
            Ok(at)
        }
    }
}

fn flip(file: &File, at: u64, dice: &mut Dice) -> Result<u64> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << dice.between(0, 7);
    file.write_all_at(&byte, at)?;
    Ok(at)
}

/// Flips a bit of one byte of the chunk: done to all of its replicas, nothing is left to read it from.
pub fn flip_at(replica: &DiskReplica, chunk_offset: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(&replica.path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, DATA_START + chunk_offset)?;
    byte[0] ^= 1;
    file.write_all_at(&byte, DATA_START + chunk_offset)?;
    Ok(file.sync_all()?)
}

/// Two chunk files get each other's names.
pub fn swap(a: &DiskReplica, b: &DiskReplica) -> Result<String> {
    let aside = a.path.with_extension("swap");
    fs::rename(&a.path, &aside)?;
    fs::rename(&b.path, &a.path)?;
    fs::rename(&aside, &b.path)?;
    Ok(format!("chunks {} and {} swapped on {}", a.chunk, b.chunk, a.node))
}

/// Flips a bit of any file, a database's for example. Says where.
pub fn flip_somewhere(path: &Path, dice: &mut Dice) -> Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())?;
    let len = file.metadata()?.len();
    ensure!(len > 0, "{} is empty", path.display());
    flip(&file, dice.between(0, len - 1), dice)
}
