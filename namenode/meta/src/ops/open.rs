//! Open: proves that the caller might open a file at this point of a sequence, whatever becomes of its mode later.

use dfs_proto::msg::meta::OpReply;
use dfs_proto::{Grant, InodeId};

use crate::apply::Client;
use crate::permission::{self, READ, WRITE};
use crate::rows;
use crate::tree;
use crate::tx::{Failure, Tx};

pub(crate) fn apply(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    read: bool,
    write: bool,
) -> Result<OpReply, Failure> {
    let row = tree::live_inode(tx.view(), inode)?;
    let mask = READ * u8::from(read) + WRITE * u8::from(write);
    permission::require(tx.view(), inode, &row, client.caller, mask)?;
    let keys = rows::capability_keys(tx.view())?;
    Ok(OpReply::Opened { grant: Grant::sign(keys.newest()?, inode, client.session, read, write) })
}
