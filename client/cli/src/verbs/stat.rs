use dfs_proto::{Attr, FileKind};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::output::put_bytes;
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::units;
use crate::users;
use crate::verbs::ls::{kind_letter, kind_name};

/// Everything about files: size, times, owner, permissions
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs stat /docs/report.pdf\n  dfs --json stat /docs | jq .size_bytes")]
pub struct Args {
    /// Follow symbolic links
    #[arg(short = 'L', long)]
    dereference: bool,
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let attr = if args.dereference { remote.stat(path).await } else { remote.lstat(path).await };
                let done = match attr {
                    Ok(attr) => show(context, remote, path, &attr).await,
                    Err(failure) => Err(failure),
                };
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn show(context: &Context, remote: &Remote, path: &DfsPath, attr: &Attr) -> Result {
    let mut xattrs = Vec::new();
    if !attr.xattrs.is_empty() {
        let names = remote.dfs.list_xattrs(&remote.caller, attr.inode).await;
        let names = names.map_err(|error| Failure::from(error).at(path))?;
        xattrs = names.iter().map(|name| name.to_string()).collect();
    }
    print(context, path, attr, &xattrs)
}

fn print(context: &Context, path: &DfsPath, attr: &Attr, xattrs: &[String]) -> Result {
    if context.out.json {
        let mut object = object(path, attr);
        object["xattrs"] = json!(xattrs);
        return context.out.object(object);
    }
    let permissions = format!("{}{}", kind_letter(attr.kind), units::permissions(attr.mode));
    let mut lines = vec![
        format!("path         {path}"),
        format!("kind         {}", kind_name(attr.kind)),
        format!("size         {} bytes ({})", units::count(attr.size_bytes), units::human(attr.size_bytes)),
        format!("mapped       {} bytes", units::count(attr.mapped_bytes)),
        format!("inode        {}, {} links", attr.inode, attr.nlink),
        format!("permissions  {permissions} ({:04o})", attr.mode),
        format!(
            "owner        {} ({}), {} ({})",
            users::user_name(attr.uid),
            attr.uid,
            users::group_name(attr.gid),
            attr.gid
        ),
    ];
    if attr.kind == FileKind::File {
        lines.push(format!("replication  {}", attr.replication));
        lines.push(format!("version      {}", attr.version));
    }
    for (name, time) in
        [("modified", attr.mtime), ("changed", attr.ctime), ("accessed", attr.atime), ("created", attr.crtime)]
    {
        lines.push(format!("{name:12} {}", units::utc_time(time)));
    }
    lines.extend(xattrs.iter().map(|name| format!("attribute    {name}")));
    context.out.line(lines.join("\n"))
}

/// The attributes in JSON, as `ls`, `find` and `stat` show them.
pub fn object(path: &DfsPath, attr: &Attr) -> Value {
    let mut object = json!({
        "kind": kind_name(attr.kind),
        "inode": attr.inode,
        "mode": format!("{:04o}", attr.mode),
        "links": attr.nlink,
        "uid": attr.uid,
        "gid": attr.gid,
        "owner": users::user_name(attr.uid),
        "group": users::group_name(attr.gid),
        "size_bytes": attr.size_bytes,
        "mapped_bytes": attr.mapped_bytes,
        "replication": attr.replication,
        "version": attr.version,
        "modified": units::utc_time(attr.mtime),
        "changed": units::utc_time(attr.ctime),
        "accessed": units::utc_time(attr.atime),
        "created": units::utc_time(attr.crtime),
    });
    put_bytes(&mut object, "path", &path.to_bytes());
    object
}
