use crate::command::{Applied, Command};
use crate::view::{Fault, View};

/// Applies a batch of commands.
pub fn apply(_view: &dyn View, _commands: &[Command]) -> Result<Applied, Fault> {
    Ok(Applied::default())
}
