//! Ctrl-C and SIGTERM: the first asks the command to finish its step and save, the second exits at once.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether the user asked to stop; long loops look between steps.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The flag itself, for a library that polls it.
pub fn flag() -> &'static AtomicBool {
    &REQUESTED
}

/// Catches SIGINT, SIGTERM and SIGHUP.
pub fn install() {
    let caught = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            failure::end_at_once(failure::INTERRUPTED);
        }
        eprintln!("stopping after what is under way; once more to stop at once");
    });
    if let Err(error) = caught {
        tracing::warn!("Ctrl-C will stop without saving: {error}");
    }
}
