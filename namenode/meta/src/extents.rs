//! Which extents a file has after a write or a cut: pure lists, no rows.

use dfs_proto::{ChunkId, Extent};

/// What is left of `touching` when `new` is written over it, with `new`, in order. `touching` must be
/// in order, without overlaps, and hold every extent of the file that overlaps `new` or meets it; the
/// neighbours are there to be joined with it where they go on in the same chunk.
pub(crate) fn replace(touching: &[Extent], new: &Extent) -> Vec<Extent> {
    let before = touching.iter().filter_map(|old| old.clip(0, new.file_offset));
    let behind = touching.iter().filter_map(|old| old.clip(new.file_end(), u64::MAX));
    coalesce(before.chain([*new]).chain(behind))
}

/// What is left of `extents` outside of `[start, end)`.
pub(crate) fn punch(extents: &[Extent], start: u64, end: u64) -> Vec<Extent> {
    extents.iter().flat_map(|extent| [extent.clip(0, start), extent.clip(end, u64::MAX)]).flatten().collect()
}

/// Joins neighbours that go on where the one before ends, in the file and in the chunk.
pub(crate) fn coalesce(ordered: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::new();
    for extent in ordered {
        match joined.last_mut() {
            Some(last) if last.continues_with(&extent) => last.len += extent.len,
            _ => joined.push(extent),
        }
    }
    joined
}

/// Sum of the lengths.
pub(crate) fn mapped_bytes(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| u64::from(extent.len)).sum()
}

/// Recounts a whole file: order, overlaps, its size, and the chunks' committed lengths. Says what is wrong.
pub(crate) fn check(
    extents: &[Extent],
    size_bytes: u64,
    committed: &dyn Fn(ChunkId) -> Option<u32>,
) -> Result<(), String> {
    let mut end = 0;
    for extent in extents {
        if !extent.is_sound() {
            return Err(format!("{extent:?} is no extent"));
        }
        if extent.file_offset < end {
            return Err(format!("{extent:?} overlaps the one before it, which ends at {end}"));
        }
        end = extent.file_end();
        if end > size_bytes {
            return Err(format!("{extent:?} ends behind the file's {size_bytes} bytes"));
        }
        match committed(extent.chunk) {
            None => return Err(format!("{extent:?} names a chunk that does not exist")),
            Some(len) if extent.chunk_end() > len => {
                return Err(format!("{extent:?} ends behind the chunk's {len} committed bytes"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(file_offset: u64, chunk: u64, chunk_offset: u32, len: u32) -> Extent {
        Extent { file_offset, chunk: ChunkId(chunk), chunk_offset, len }
    }

    #[test]
    fn a_write_into_the_middle_leaves_both_ends() {
        let old = [extent(0, 1, 100, 30)];
        let new = extent(10, 2, 0, 5);
        assert_eq!(replace(&old, &new), [extent(0, 1, 100, 10), new, extent(15, 1, 115, 15)]);
    }

    #[test]
    fn appends_to_file_and_chunk_together_stay_one_extent() {
        let old = [extent(0, 1, 0, 10), extent(20, 1, 20, 5)];
        assert_eq!(replace(&old, &extent(10, 1, 10, 10)), [extent(0, 1, 0, 25)]);
    }

    #[test]
    fn the_check_finds_each_kind_of_damage() {
        let len = |chunk: ChunkId| (chunk.0 == 1).then_some(50);
        assert_eq!(check(&[extent(0, 1, 0, 10), extent(10, 1, 40, 10)], 20, &len), Ok(()));
        for bad in [
            &[extent(0, 1, 0, 0)][..],
            &[extent(0, 1, 0, 10), extent(9, 1, 20, 5)],
            &[extent(15, 1, 0, 10)],
            &[extent(0, 2, 0, 10)],
            &[extent(0, 1, 45, 10)],
        ] {
            assert!(check(bad, 20, &len).is_err(), "{bad:?}");
        }
    }

    /// A whole file as a list of extents, kept by the functions above.
    fn write(file: &mut Vec<Extent>, new: Extent) {
        let touches = |old: &Extent| old.file_end() >= new.file_offset && old.file_offset <= new.file_end();
        let first =
            file.iter().position(touches).unwrap_or(file.iter().filter(|e| e.file_end() < new.file_offset).count());
        let count = file.iter().filter(|old| touches(old)).count();
        let replaced = replace(&file[first..first + count], &new);
        file.splice(first..first + count, replaced);
    }

    proptest! {
        #[test]
        fn extents_agree_with_a_map_of_bytes(
            steps in prop::collection::vec((0u64..200, 1u32..60, 1u64..4, any::<bool>()), 1..60)
        ) {
            let mut file: Vec<Extent> = Vec::new();
            let mut model: Vec<Option<(u64, u32)>> = vec![None; 300];
            let mut filled = [0u32; 4];
            for (offset, len, chunk, is_cut) in steps {
                if is_cut && len % 5 == 0 {
                    file = punch(&file, offset, u64::MAX);
                    model[offset as usize..].fill(None);
                } else if is_cut && len % 5 == 1 {
                    let end = offset + u64::from(len);
                    file = punch(&file, offset, end);
                    model[offset as usize..end as usize].fill(None);
                } else {
                    let at = filled[chunk as usize];
                    filled[chunk as usize] += len;
                    write(&mut file, extent(offset, chunk, at, len));
                    for i in 0..len {
                        model[offset as usize + i as usize] = Some((chunk, at + i));
                    }
                }
                let mut read = vec![None; 300];
                for e in &file {
                    for i in 0..e.len {
                        read[e.file_offset as usize + i as usize] = Some((e.chunk.0, e.chunk_offset + i));
                    }
                }
                prop_assert_eq!(&read, &model);
                prop_assert_eq!(check(&file, 300, &|_| Some(u32::MAX)), Ok(()));
                prop_assert_eq!(&coalesce(file.iter().copied()), &file);
                prop_assert_eq!(mapped_bytes(&file), model.iter().flatten().count() as u64);
            }
        }
    }
}
