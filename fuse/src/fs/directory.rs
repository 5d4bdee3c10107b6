//! Directory streams: pages of entries behind the kernel's positions.

use std::sync::Arc;

use dfs_client::{Dfs, Mark};
use dfs_proto::msg::meta::{DirEntry, DirPage};
use dfs_proto::{Attr, Caller, FileKind, InodeId};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::Fs;
use super::caller::Requester;
use super::errno::Errno;
use super::handles::{Handle, HandleId};

/// Positions of the two entries that are not stored; the namenode's cookies are above them.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// Entries asked for at once. A page with attributes is about 100 KiB on the wire, and the kernel takes a
/// few hundred entries at a time.
const PAGE_ENTRIES: u32 = 1024;

/// Entries handed to the kernel at once, at most. It takes what fits its buffer, which is not told, and asks
/// again for the rest: preparing many more than fit would be work for nothing.
const ANSWER_ENTRIES: usize = 256;

/// An open directory: the page that was fetched last, in case the kernel did not take all of it, and the one behind it.
pub struct OpenDirectory {
    inode: InodeId,
    page: Mutex<Option<Arc<Page>>>,
    ahead: Mutex<Option<Ahead>>,
}

/// A page that is fetched while the one before it is read.
struct Ahead {
    caller: Caller,
    after: u64,
    attrs: bool,
    fetch: JoinHandle<Result<Page, Errno>>,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.fetch.abort();
    }
}

/// What goes into an answer: an entry with the position to go on from, and its attributes if asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    pub name: Vec<u8>,
    pub inode: InodeId,
    pub kind: FileKind,
    pub position: u64,
    pub attr: Option<Attr>,
}

impl OpenDirectory {
    pub fn new(inode: InodeId) -> OpenDirectory {
        OpenDirectory { inode, page: Mutex::new(None), ahead: Mutex::new(None) }
    }

    /// The page behind `after`, if it was fetched. What has failed is tried again by who needs it.
    async fn fetched_ahead(&self, caller: &Caller, after: u64, attrs: bool) -> Option<Page> {
        let mut ahead = self.ahead.lock().take().filter(|ahead| ahead.is(caller, after, attrs))?;
        (&mut ahead.fetch).await.ok()?.ok()
    }

    #[cfg(test)]
    pub fn inode(&self) -> InodeId {
        self.inode
    }
}

impl Fs {
    /// Opens a directory stream. Whether it may be read is asked with its first page.
    pub fn open_directory(&self, inode: InodeId) -> HandleId {
        self.handles.insert(Handle::Directory(Arc::new(OpenDirectory::new(inode))))
    }

    /// The entries behind `position`, which is 0 or one of those given out before; none at the end. The answer may hold
    /// more than the kernel takes, and less than there is. `attrs` asks for attributes.
    pub async fn list(
        &self,
        who: Requester,
        handle: HandleId,
        position: u64,
        attrs: bool,
    ) -> Result<Vec<Listed>, Errno> {
        let directory = self.handles.directory(handle)?;
        let caller = who.caller();
        let buffered = if position == 0 { None } else { directory.page.lock().clone() };
        let page = match buffered {
            Some(page) if page.serves(position, attrs) => page,
            _ => {
                let after = if position <= DOT_DOT { 0 } else { position };
                let fetched = match directory.fetched_ahead(&caller, after, attrs).await {
                    Some(page) => page,
                    None => Page::fetch(&self.dfs, &caller, directory.inode, after, attrs).await?,
                };
                let page = Arc::new(fetched);
                *directory.page.lock() = Some(page.clone());
                page
            }
        };
        // What lies above the top of the mount is not shown, not even as a number.
        let parent = if directory.inode == self.root { self.root } else { page.content.parent };
        let mut listed = dots(directory.inode, parent, position);
        let entries = page.entries_after(position);
        if let Some(after) = page.next().filter(|_| 2 * entries.len() < page.content.entries.len()) {
            self.fetch_ahead(&directory, &caller, after, attrs);
        }
        for entry in entries.iter().take(ANSWER_ENTRIES) {
            if let Some(entry) = self.listed(&caller, entry, page.asked.filter(|_| attrs)).await? {
                listed.push(entry);
            }
        }
        Ok(listed)
    }

    /// Half of the page before has been read: who has read so far goes on.
    fn fetch_ahead(&self, directory: &OpenDirectory, caller: &Caller, after: u64, attrs: bool) {
        let mut ahead = directory.ahead.lock();
        if ahead.as_ref().is_some_and(|ahead| ahead.is(caller, after, attrs)) {
            return;
        }
        let (dfs, inode, asker) = (self.dfs.clone(), directory.inode, caller.clone());
        let fetch = async move { Page::fetch(&dfs, &asker, inode, after, attrs).await };
        *ahead = Some(Ahead { caller: caller.clone(), after, attrs, fetch: tokio::spawn(fetch) });
    }

    /// With attributes that the kernel may believe, if the page was `asked` for with them. Those in the page are as old as
    /// the page, and an old size would make the kernel cut its cache: of a file that is being written here, it would lose
    /// pages of a shared mapping that are not written back yet.
    async fn listed(&self, caller: &Caller, entry: &DirEntry, asked: Option<Mark>) -> Result<Option<Listed>, Errno> {
        let mut listed = Listed {
            name: entry.name.as_bytes().to_vec(),
            inode: entry.inode,
            kind: entry.kind,
            position: entry.cookie,
            attr: None,
        };
        let Some(asked) = asked else { return Ok(Some(listed)) };
        let is_latest = |attr: &Attr| !self.open_inodes.is_writable(entry.inode) && self.dfs.is_latest(attr, asked);
        let fresh = match entry.attr.as_ref().filter(|attr| is_latest(attr)) {
            Some(attr) => Ok(attr.clone()),
            None => self.dfs.getattr(caller, entry.inode).await.map_err(Errno::from),
        };
        match fresh {
            Ok(attr) => listed.attr = Some(attr),
            // Removed since the page was read.
            Err(Errno(libc::ENOENT | libc::ESTALE)) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(listed))
    }
}

/// A part of a directory that starts behind the cookie `after`.
struct Page {
    after: u64,
    attrs: bool,
    /// Before it was asked for.
    asked: Option<Mark>,
    content: DirPage,
}

impl Ahead {
    fn is(&self, caller: &Caller, after: u64, attrs: bool) -> bool {
        (&self.caller, self.after) == (caller, after) && (self.attrs || !attrs)
    }
}

impl Page {
    async fn fetch(dfs: &Dfs, caller: &Caller, inode: InodeId, after: u64, attrs: bool) -> Result<Page, Errno> {
        let asked = Some(dfs.mark());
        let content = dfs.read_dir(caller, inode, after, PAGE_ENTRIES, attrs).await?;
        Ok(Page { after, attrs, asked, content })
    }

    /// The cookie behind which the next page begins, if there is one.
    fn next(&self) -> Option<u64> {
        self.content.entries.last().filter(|_| !self.content.end).map(|last| last.cookie)
    }

    /// Whether a request for what lies behind `position` can be answered from this page.
    fn serves(&self, position: u64, attrs: bool) -> bool {
        if attrs && !self.attrs {
            return false;
        }
        if self.content.end && self.content.entries.last().map_or(self.after, |last| last.cookie) == position {
            return true;
        }
        match position {
            0..=DOT_DOT => self.after == 0,
            _ => !self.entries_after(position).is_empty(),
        }
    }

    /// Cookies need not rise from entry to entry: a position is found by equality.
    fn entries_after(&self, position: u64) -> &[DirEntry] {
        let entries = &self.content.entries;
        if position <= DOT_DOT && self.after == 0 || position == self.after {
            return entries;
        }
        match entries.iter().position(|entry| entry.cookie == position) {
            Some(index) => &entries[index + 1..],
            None => &[],
        }
    }
}

/// `.` and `..`, as far as they lie behind `position`. They carry no attributes: the kernel knows both.
fn dots(inode: InodeId, parent: InodeId, position: u64) -> Vec<Listed> {
    let dot = |name: &[u8], inode, position| Listed {
        name: name.to_vec(),
        inode,
        kind: FileKind::Directory,
        position,
        attr: None,
    };
    [dot(b".", inode, DOT), dot(b"..", parent, DOT_DOT)].into_iter().filter(|entry| entry.position > position).collect()
}

#[cfg(test)]
mod tests {
    use dfs_proto::Name;

    use super::*;

    fn page(after: u64, cookies: &[u64], end: bool) -> Page {
        let entry = |&cookie: &u64| DirEntry {
            name: Name::new(format!("n{cookie}")).unwrap(),
            inode: InodeId(cookie),
            kind: FileKind::File,
            cookie,
            attr: None,
        };
        let entries = cookies.iter().map(entry).collect();
        Page { after, attrs: false, asked: None, content: DirPage { parent: InodeId(1), entries, end } }
    }

    fn cookies(entries: &[DirEntry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.cookie).collect()
    }

    #[test]
    fn a_stream_goes_on_behind_the_entry_the_kernel_took_last() {
        let first = page(0, &[10, 70, 30], false);
        for position in [0, DOT, DOT_DOT] {
            assert!(first.serves(position, false));
            assert_eq!(cookies(first.entries_after(position)), [10, 70, 30]);
        }
        assert_eq!(cookies(first.entries_after(70)), [30]);
        assert!(!first.serves(30, false), "more follows in another page");
        assert!(!first.serves(99, false), "a position of another page");
    }

    #[test]
    fn the_last_page_answers_the_end() {
        let last = page(30, &[40, 50], true);
        assert_eq!(cookies(last.entries_after(30)), [40, 50]);
        assert!(last.serves(50, false));
        assert!(last.entries_after(50).is_empty());
        assert!(!last.serves(0, false));

        let empty = page(0, &[], true);
        assert!(empty.serves(DOT_DOT, false));
        assert!(empty.entries_after(DOT_DOT).is_empty());
    }

    #[test]
    fn attributes_are_not_made_up() {
        assert!(!page(0, &[10], true).serves(0, true));
    }

    #[test]
    fn the_dots_come_first_and_once() {
        let names =
            |position| dots(InodeId(5), InodeId(4), position).into_iter().map(|dot| dot.inode).collect::<Vec<_>>();
        assert_eq!(names(0), [InodeId(5), InodeId(4)]);
        assert_eq!(names(DOT), [InodeId(4)]);
        assert!(names(DOT_DOT).is_empty());
        assert!(names(10).is_empty());
    }
}
