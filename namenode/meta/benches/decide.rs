//! What a leader's thread does for each command, without disk and network: `cargo bench -p dfs-meta`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dfs_meta::placement::{self, NodeView};
use dfs_meta::query::{self, Asker};
use dfs_meta::{Body, Command, MemoryView, Reply, apply};
use dfs_proto::msg::admin::Liveness;
use dfs_proto::msg::meta::{NewNode, Op, Query};
use dfs_proto::{Caller, CapabilityKey, ClusterId, InodeId, Name, NodeId, RequestId, SessionId, Timestamp};

/// Files that are there before anything is measured.
const FILES: u64 = 10_000;

/// Commands that one entry of the log carries under load.
const BATCH: u64 = 64;

const HOLDER: NodeId = NodeId(500);

struct State {
    view: MemoryView,
    session: SessionId,
}

impl State {
    /// A cluster with a session and so many files in the root directory.
    fn with_files(count: u64) -> State {
        let mut state = State { view: MemoryView::new(), session: SessionId(0) };
        let key = CapabilityKey { number: 1, secret: [7; 32] };
        let cluster = ClusterId([1; 16]);
        state.done(Body::Genesis { cluster, default_replication: 3, min_copies: 2, lease_ms: 10_000, key });
        let opened = state.done(Body::OpenSession { description: "bench".into(), holder: HOLDER });
        let Reply::Session(grant) = opened else { panic!("{opened:?}") };
        state.session = grant.session;
        for number in 1..=count {
            state.done(state.create(number));
        }
        state
    }

    fn create(&self, number: u64) -> Body {
        let op = Op::Make {
            parent: InodeId::ROOT,
            name: name(number),
            node: NewNode::File,
            mode: 0o644,
            exclusive: true,
            open: None,
            replication: None,
        };
        let id = RequestId { session: self.session, number };
        Body::Client { id, acked_below: number, caller: Caller::ROOT, op, placement: Vec::new() }
    }

    fn done(&mut self, body: Body) -> Reply {
        let applied = apply(&self.view, &[command(body)]).unwrap();
        self.view.write(applied.changes);
        applied.outcomes.into_iter().next().unwrap().unwrap()
    }
}

fn name(number: u64) -> Name {
    Name::new(format!("file{number:08}")).unwrap()
}

fn command(body: Body) -> Command {
    Command { now: Timestamp { secs: 1_000_000, nanos: 0 }, body }
}

fn bench_apply(criterion: &mut Criterion) {
    let state = State::with_files(FILES);
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("create, 64 in one batch", |bencher| {
        let batch = || (1..=BATCH).map(|n| command(state.create(FILES + n))).collect::<Vec<_>>();
        bencher.iter_batched(batch, |commands| apply(&state.view, &commands).unwrap(), BatchSize::SmallInput);
    });
}

fn bench_query(criterion: &mut Criterion) {
    let state = State::with_files(FILES);
    let caller = Caller::ROOT;
    let now = Timestamp { secs: 1_000_000, nanos: 0 };
    let asker = Asker { caller: &caller, session: state.session, holder: HOLDER, now };
    let ask = |query: &Query| query::answer(&state.view, &asker, query, &|_| Liveness::Live).unwrap().unwrap();
    let lookup = Query::Lookup { parent: InodeId::ROOT, name: name(FILES / 2) };
    criterion.bench_function("query/look-up", |bencher| bencher.iter(|| ask(&lookup)));
    let page = Query::ReadDir { inode: InodeId::ROOT, after: 0, limit: 1024, attrs: true };
    criterion.bench_function("query/page of 1024 with attributes", |bencher| bencher.iter(|| ask(&page)));
}

fn bench_placement(criterion: &mut Criterion) {
    let node = |number| NodeView {
        node: NodeId(number),
        liveness: Liveness::Live,
        free_bytes: (number % 7 + 1) << 40,
        total_bytes: 8 << 40,
        writable: true,
        load: number as u32 % 5,
    };
    let nodes: Vec<NodeView> = (0..100).map(node).collect();
    let mut seed = 0;
    criterion.bench_function("placement/3 of 100 nodes", |bencher| {
        bencher.iter(|| {
            seed += 1;
            placement::choose(&nodes, 3, &[NodeId(4)], seed)
        });
    });
}

criterion_group!(benches, bench_apply, bench_query, bench_placement);
criterion_main!(benches);
