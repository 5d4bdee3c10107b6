use dfs_proto::FileKind;
use dfs_proto::msg::admin::{FsckReport, ProblemKind};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{Exit, Failure, Result, Tally};
use crate::output::{Tone, put_bytes};
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::units;
use crate::verbs::info::Verified;
use crate::verbs::status::NodeNames;

/// Check that everything adds up and every chunk has its copies
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs fsck\n  dfs fsck /docs --files --locations")]
pub struct Args {
    /// Name each file
    #[arg(long)]
    files: bool,
    /// Name each file's chunks and where their replicas are
    #[arg(long)]
    locations: bool,
    #[arg(default_value = "/")]
    path: DfsPath,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Healthy,
    /// Everything can be read, but copies are lacking.
    Degraded,
    Corrupt,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let names = NodeNames::new(&context.config()?);
    context
        .with_remote(async |remote| {
            let attr = remote.stat(&args.path).await?;
            if args.files || args.locations {
                print_files(context, &args, remote, &names).await?;
            }
            let report = remote.dfs.fsck(attr.inode).await.map_err(Failure::from)?;
            print(context, &args.path, &report)
        })
        .await
}

async fn print_files(context: &Context, args: &Args, remote: &Remote, names: &NodeNames) -> Result {
    let mut tally = Tally::default();
    let status = super::status::ask(&remote.dfs).await?;
    let mut walk = remote.walk(&args.path, true).await?;
    while let Some(visit) = walk.next().await? {
        if visit.attr.kind != FileKind::File {
            continue;
        }
        let done = async {
            let info = remote.dfs.file_info(visit.attr.inode).await?;
            let verified = match args.locations {
                true => Some(Verified::ask(&remote.dfs, &status, &info).await),
                false => None,
            };
            if context.out.json {
                let mut object =
                    verified.map_or_else(|| json!({}), |verified| super::info::object(&info, &verified, names));
                put_bytes(&mut object, "path", &visit.path.to_bytes());
                object["size_bytes"] = visit.attr.size_bytes.into();
                return context.out.object(object);
            }
            let chunks = info.chunks.len();
            context.out.line(format!("{} {} bytes, {chunks} chunks", visit.path, visit.attr.size_bytes))?;
            let shown = if args.locations { &info.chunks[..] } else { &[] };
            shown.iter().try_for_each(|chunk| context.out.line(super::info::chunk_line(context, chunk, names)))?;
            let oldest = verified.and_then(|verified| verified.line(names));
            oldest.map_or(Ok(()), |line| context.out.line(line))
        };
        let done: Result = done.await;
        context.out.keep_going(&mut tally, done.map_err(|failure| failure.at(&visit.path)))?;
    }
    tally.end()
}

fn print(context: &Context, path: &DfsPath, report: &FsckReport) -> Result {
    let verdict = verdict(report);
    if context.out.json {
        context.out.object(object(path, report, verdict))?;
    } else {
        print_for_people(context, path, report, verdict)?;
    }
    if verdict == Verdict::Healthy { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

fn print_for_people(context: &Context, path: &DfsPath, report: &FsckReport, verdict: Verdict) -> Result {
    let out = &context.out;
    for problem in &report.problems {
        let at = problem.path.as_ref().map(|path| format!("{path}: ")).unwrap_or_default();
        out.line(format!("{:16} {at}{}", kind_name(problem.kind), problem.text))?;
    }
    let hidden = report.problems_total.saturating_sub(report.problems.len() as u64);
    if hidden > 0 {
        out.line(format!("... and {} more", units::count(hidden)))?;
    }
    let counts = &report.counts;
    let chunks = &report.chunks;
    out.line(format!("files        {}", units::count(counts.files)))?;
    out.line(format!("directories  {}", units::count(counts.directories)))?;
    out.line(format!("bytes        {} ({})", units::count(counts.mapped_bytes), units::human(counts.mapped_bytes)))?;
    out.line(format!(
        "chunks       {}: {} healthy, {} under-replicated, {} missing, {} over-replicated, {} open",
        chunks.total, chunks.healthy, chunks.under_replicated, chunks.missing, chunks.over_replicated, chunks.open
    ))?;
    let (tone, word) = match verdict {
        Verdict::Healthy => (Tone::Good, "HEALTHY"),
        Verdict::Degraded => (Tone::Warn, "DEGRADED"),
        Verdict::Corrupt => (Tone::Bad, "CORRUPT"),
    };
    out.line(format!("The file system under '{path}' is {}", out.paint(tone, word)))
}

fn verdict(report: &FsckReport) -> Verdict {
    let corrupt =
        report.chunks.missing > 0 || report.problems.iter().any(|problem| problem.kind != ProblemKind::UnderReplicated);
    if corrupt {
        Verdict::Corrupt
    } else if report.chunks.under_replicated > 0 || report.problems_total > 0 {
        Verdict::Degraded
    } else {
        Verdict::Healthy
    }
}

fn object(path: &DfsPath, report: &FsckReport, verdict: Verdict) -> Value {
    let problems: Vec<_> = report
        .problems
        .iter()
        .map(|problem| {
            json!({
                "kind": kind_name(problem.kind), "text": problem.text, "inode": problem.inode,
                "chunk": problem.chunk, "path": problem.path,
            })
        })
        .collect();
    let verdict = match verdict {
        Verdict::Healthy => "healthy",
        Verdict::Degraded => "degraded",
        Verdict::Corrupt => "corrupt",
    };
    let mut object = json!({
        "verdict": verdict, "counts": report.counts, "chunks": report.chunks,
        "problems": problems, "problems_total": report.problems_total,
    });
    put_bytes(&mut object, "path", &path.to_bytes());
    object
}

fn kind_name(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::Missing => "missing",
        ProblemKind::UnderReplicated => "under_replicated",
        ProblemKind::Inconsistent => "inconsistent",
        ProblemKind::Lost => "lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::msg::admin::Problem;

    #[test]
    fn lacking_copies_degrade_and_contradictions_corrupt() {
        let problem = |kind| Problem { kind, text: String::new(), inode: None, chunk: None, path: None };
        let report = |kinds: &[ProblemKind]| FsckReport {
            problems: kinds.iter().map(|kind| problem(*kind)).collect(),
            problems_total: kinds.len() as u64,
            ..FsckReport::default()
        };
        assert_eq!(verdict(&report(&[])), Verdict::Healthy);
        assert_eq!(verdict(&report(&[ProblemKind::UnderReplicated])), Verdict::Degraded);
        assert_eq!(verdict(&report(&[ProblemKind::UnderReplicated, ProblemKind::Missing])), Verdict::Corrupt);
        assert_eq!(verdict(&report(&[ProblemKind::Inconsistent])), Verdict::Corrupt);
        assert_eq!(verdict(&report(&[ProblemKind::Lost])), Verdict::Corrupt);
    }
}
