//! Ranges of open files: allocating, punching, seeking data and holes, copying without moving bytes.

use dfs_client::Fallocate;
use dfs_proto::limits::FILE_MAX;

use super::Fs;
use super::caller::Requester;
use super::errno::Errno;
use super::handles::HandleId;

/// Bytes that one request copies at most: its reply has 32 bits for them. A multiple of every page size.
const COPY_MAX: u64 = 1 << 31;

/// Where in a file a range begins.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub handle: HandleId,
    pub offset: u64,
}

impl Fs {
    /// `mode` is that of fallocate(2). No space is reserved: a chunk takes room when its bytes come.
    pub async fn allocate(
        &self,
        who: Requester,
        handle: HandleId,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        let how = allocation(mode)?;
        offset.checked_add(len).filter(|&end| end <= FILE_MAX).ok_or(Errno::TOO_LARGE)?;
        let open = self.handles.file(handle)?;
        let file = open.client_file();
        self.drop_privilege(who, &file.attr()).await?;
        self.open_inodes.changed(file.inode());
        Ok(file.fallocate(&who.caller(), offset, len, how).await?)
    }

    /// `whence` is SEEK_DATA or SEEK_HOLE; the kernel does the others itself.
    pub async fn seek(&self, handle: HandleId, offset: i64, whence: i32) -> Result<i64, Errno> {
        let open = self.handles.file(handle)?;
        let offset = u64::try_from(offset).map_err(|_| Errno::NO_SUCH_PLACE)?;
        let found = match whence {
            libc::SEEK_DATA => open.client_file().seek_data(offset).await?,
            libc::SEEK_HOLE => open.client_file().seek_hole(offset).await?,
            _ => return Err(Errno::INVALID),
        };
        found.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::NO_SUCH_PLACE)
    }

    /// How many bytes were copied: some, or 0 at the end of the source.
    pub async fn copy_range(&self, who: Requester, from: Start, to: Start, len: u64) -> Result<u32, Errno> {
        let source = self.handles.file(from.handle)?;
        let target = self.handles.file(to.handle)?;
        let file = target.client_file();
        self.drop_privilege(who, &file.attr()).await?;
        self.open_inodes.changed(file.inode());
        let len = len.min(COPY_MAX);
        let done = file.copy_from(&who.caller(), source.client_file(), from.offset, to.offset, len).await?;
        u32::try_from(done).map_err(|_| Errno::TOO_LARGE)
    }
}

fn allocation(mode: i32) -> Result<Fallocate, Errno> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    Ok(match mode {
        0 => Fallocate { zero: false, keep_size: false },
        KEEP => Fallocate { zero: false, keep_size: true },
        ZERO => Fallocate { zero: true, keep_size: false },
        PUNCH | ZERO_KEEP => Fallocate { zero: true, keep_size: true },
        _ => return Err(Errno::NOT_SUPPORTED),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_that_are_not_known_are_refused() {
        let punch = libc::FALLOC_FL_PUNCH_HOLE;
        assert_eq!(allocation(punch | libc::FALLOC_FL_KEEP_SIZE), Ok(Fallocate { zero: true, keep_size: true }));
        assert_eq!(allocation(punch), Err(Errno::NOT_SUPPORTED));
        for mode in
            [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_UNSHARE_RANGE, 1 << 30]
        {
            assert_eq!(allocation(mode), Err(Errno::NOT_SUPPORTED));
            assert_eq!(allocation(mode | libc::FALLOC_FL_KEEP_SIZE), Err(Errno::NOT_SUPPORTED));
        }
    }
}
