//! Futures that begin on the thread that makes them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs `work` on this thread as far as it need not wait, and then as a task of the runtime. That is told of it only when
/// `work` can go on: to wake one of its threads just to wait there as well takes longer than most answers from memory.
pub fn start(runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
    let mut work: Work = Box::pin(work);
    let begun = Arc::new(Begun { runtime: runtime.clone(), state: Mutex::new(State::Running { woken: false }) });
    let waker = Waker::from(begun.clone());
    let _runtime = runtime.enter();
    if work.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        begun.wait(work);
    }
}

/// Work that was begun outside the runtime.
struct Begun {
    runtime: Handle,
    state: Mutex<State>,
}

enum State {
    Running {
        woken: bool,
    },
    Waiting(Work),
    /// A task of the runtime, which is woken by itself, or done.
    Left,
}

impl Begun {
    fn wait(&self, work: Work) {
        let mut state = self.state.lock();
        if matches!(*state, State::Running { woken: true }) {
            *state = State::Left;
            drop(state);
            self.runtime.spawn(work);
        } else {
            *state = State::Waiting(work);
        }
    }
}

impl Wake for Begun {
    fn wake(self: Arc<Begun>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Begun>) {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Left) {
            State::Running { .. } => *state = State::Running { woken: true },
            State::Waiting(work) => {
                drop(state);
                self.runtime.spawn(work);
            }
            State::Left => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use tokio::sync::{Notify, oneshot};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
    }

    #[test]
    fn what_need_not_wait_is_done_at_once_and_here() {
        let (runtime, (done, waits)) = (runtime(), mpsc::channel());
        start(runtime.handle(), async move { done.send(thread::current().id()).unwrap() });
        assert_eq!(waits.try_recv(), Ok(thread::current().id()));
    }

    #[test]
    fn what_waits_goes_on_in_the_runtime_when_it_can_and_not_before() {
        let (runtime, (tell, told), (done, waits)) = (runtime(), oneshot::channel(), mpsc::channel());
        start(runtime.handle(), async move {
            let told: u32 = told.await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            done.send((told, thread::current().id())).unwrap();
        });
        assert_eq!(runtime.metrics().num_alive_tasks(), 0);
        tell.send(7).unwrap();
        let (told, thread) = waits.recv_timeout(LONG).unwrap();
        assert_eq!(told, 7);
        assert_ne!(thread, thread::current().id());
    }

    #[test]
    fn timers_wake_it() {
        let (runtime, (done, waits)) = (runtime(), mpsc::channel());
        start(runtime.handle(), async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            done.send(()).unwrap();
        });
        waits.recv_timeout(LONG).unwrap();
    }

    /// While it is polled for the first time.
    #[test]
    fn who_is_woken_before_he_waits_goes_on() {
        let (runtime, (done, waits)) = (runtime(), mpsc::channel());
        start(runtime.handle(), async move {
            tokio::task::yield_now().await;
            let notify = Notify::new();
            let notified = notify.notified();
            notify.notify_waiters();
            notified.await;
            std::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                std::task::Poll::Ready(())
            })
            .await;
            done.send(()).unwrap();
        });
        waits.recv_timeout(LONG).unwrap();
    }
}
