//! `dfs datanode add`.

use std::time::{Duration, Instant};

use dfs_client::{Dfs, Options};
use dfs_proto::NodeId;
use dfs_proto::msg::admin::Liveness;
use serde_json::json;

use crate::context::{Context, load_config};
use crate::error::{Failure, Result};
use crate::local::layout::{Kind, Layout, Member};
use crate::local::scaffold;
use crate::local::settings::Settings;
use crate::units;
use crate::verbs::status;
use crate::verbs::up::start_member;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Names go with numbers: the next one, or one that is there already and only has to be started
    #[arg(value_name = "NODE")]
    name: Option<String>,
}

const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

pub async fn run(context: &Context, args: Args) -> Result {
    let start = Instant::now();
    let layout = Layout::of(None, &context.global.cluster)?;
    if !layout.up_toml().exists() || !layout.exists() {
        return Err(Failure::usage("this cluster was not made by `dfs up`, so no datanode can be made for it here")
            .hint(
                "a datanode with a certificate of the cluster joins when it is started: dfs datanode --config FILE",
            ));
    }
    let _lock = layout.lock_folder()?;
    let mut settings = Settings::load(&layout)?;
    let mut config = load_config(&layout.cluster_toml())?;
    let next = Member { kind: Kind::Datanode, index: config.datanodes.len() + 1 };
    let named = |member: &Member| args.name.as_ref().is_some_and(|name| *name == member.name());
    let member = scaffold::members(&config, Kind::Datanode).into_iter().find(named).unwrap_or(next);
    if args.name.is_some() && !named(&member) {
        return Err(Failure::usage(format!("the next datanode here is {}", member.name()))
            .cause("names go with numbers, and a number is never used again")
            .hint(format!("dfs datanode add {}", member.name())));
    }
    if member.index == next.index {
        scaffold::add_datanodes(&layout, &mut settings, &mut config, next.index)?;
    }
    start_member(&layout, &settings, &config, member, context.global.log.as_deref())?;
    let dfs = Dfs::connect(&config, Options::default()).await?;
    wait_until_live(&dfs, member.id()).await?;
    let name = member.name();
    if context.out.json {
        let elapsed_ms = start.elapsed().as_millis() as u64;
        return context.out.object(json!({"node": member.id(), "name": name, "elapsed_ms": elapsed_ms}));
    }
    context.out.line(format!("{name} serves, after {}", units::duration(start.elapsed())))?;
    context.out.note("fuller datanodes give it their share: dfs balance");
    Ok(())
}

async fn wait_until_live(dfs: &Dfs, node: NodeId) -> Result {
    let end = Instant::now() + DEADLINE;
    loop {
        let heard = status::ask_leader(dfs).await.is_ok_and(|status| {
            status.datanodes.iter().any(|status| status.node == node && status.liveness == Liveness::Live)
        });
        if heard {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(Failure::temporary("the leader has not heard of the new datanode within 30 s")
                .hint("its log says why; `dfs status` shows the namenodes"));
        }
        tokio::time::sleep(POLL).await;
    }
}
