//! The process groups of external scorers: what a scorer has started ends with it, also where the program ends without
//! dropping its judges.

use std::collections::BTreeSet;
use std::io;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Who leads a group that runs, by process id, and whether there may be more.
struct Groups {
    leaders: BTreeSet<u32>,
    closed: bool,
}

static GROUPS: Mutex<Groups> = Mutex::new(Groups { leaders: BTreeSet::new(), closed: false });

fn groups() -> MutexGuard<'static, Groups> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process that, under Unix, leads a group of its own: it can be ended with all that it starts, and Ctrl-C is ours
/// alone. Errors: the system's; [`end_scorers`] was called.
pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    // Held until the process is known: no other thread may end the program in between.
    let mut groups = groups();
    if groups.closed {
        return Err(io::Error::other("this program is about to end"));
    }
    let child = command.spawn()?;
    groups.leaders.insert(child.id());
    Ok(child)
}

/// Kills a process of [`spawn`] and what it has started.
pub(super) fn end(child: &mut Child) {
    let mut groups = groups();
    groups.leaders.remove(&child.id());
    #[cfg(unix)]
    kill_group(child.id());
    drop(groups);
    let _ = child.kill();
    let _ = child.wait();
}

/// Kills all external scorers with all that they have started, and lets none be started any more: for a program that exits
/// at once, without dropping its judges. Does nothing where there are no process groups (other systems than Unix).
pub fn end_scorers() {
    let mut groups = groups();
    groups.closed = true;
    let leaders = std::mem::take(&mut groups.leaders);
    #[cfg(unix)]
    leaders.into_iter().for_each(kill_group);
    #[cfg(not(unix))]
    drop(leaders);
}

/// Kills what is left of a process group.
#[cfg(unix)]
#[allow(unsafe_code)]
fn kill_group(leader: u32) {
    if let Ok(leader) = libc::pid_t::try_from(leader) {
        // SAFETY: a system call on numbers. The group bears the number of a child of ours that has only just been waited
        // for, if at all: no other can have taken it.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
}
