//! What a leader keeps besides the replicated state: who is alive, what was ordered, which copies are
//! on their way. All of it is soft: a new leader builds it again from the rows and from heartbeats.

mod board;
mod gatherings;
mod lock_waits;
mod nodes;
mod opens;
mod orders;
mod pace;
mod recalls;
mod reign;
mod reports;
mod sessions;
mod watches;

pub use board::{Board, CopyInFlight};
pub use gatherings::{Gatherings, Next};
pub use lock_waits::{LockWaits, Verdict};
pub use nodes::Nodes;
pub use opens::{Knowledge, Leaving, Opens, Removing};
pub use orders::Orders;
pub use recalls::{Recall, Recalls};
pub use reign::Reign;
pub use reports::Reports;
pub use sessions::Sessions;
pub use watches::{Changed, Watches};
