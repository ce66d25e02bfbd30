// SPDX-License-Identifier: GPL-2.0

//! Somebody who sees that a system call does not return.

use std::{
    fs, process, ptr,
    sync::{
        atomic::{
            AtomicBool,
            AtomicU64,
            Ordering::Relaxed, //
        },
        Mutex, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// After so long a call that can be interrupted is. (A suspend waits for I/O that waits for somebody
/// else to resume a device below.)
const PATIENCE: Duration = Duration::from_millis(500);
/// After so long something is wrong.
const HANG: Duration = Duration::from_secs(60);

static STEP: AtomicU64 = AtomicU64::new(0);
static IS_BUSY: AtomicBool = AtomicBool::new(false);
static WHAT: Mutex<String> = Mutex::new(String::new());

extern "C" fn wake(_: libc::c_int) {}

/// Watches the thread that calls this.
pub fn begin() {
    // SAFETY: The handler does nothing. Without SA_RESTART it interrupts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = wake as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut());
    }
    // SAFETY: Always successful.
    let watched = unsafe { libc::pthread_self() };
    thread::spawn(move || {
        let (mut step, mut since) = (0, Instant::now());
        loop {
            thread::sleep(PATIENCE / 5);
            let now = STEP.load(Relaxed);
            if now != step || !IS_BUSY.load(Relaxed) {
                (step, since) = (now, Instant::now());
                continue;
            }
            if since.elapsed() > PATIENCE {
                // SAFETY: The thread is the main one, which stays.
                unsafe { libc::pthread_kill(watched, libc::SIGUSR1) };
            }
            if since.elapsed() > HANG {
                let what = WHAT.lock().map_or(String::new(), |what| what.clone());
                give_up(&format!("does not return: {what}"));
            }
        }
    });
}

/// Something is stuck: says who waits where.
pub fn give_up(what: &str) -> ! {
    println!("problem: {what}");
    for task in fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
    {
        let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        println!("{} {}", read("stat"), read("stack"));
    }
    process::exit(3);
}

/// A call that is to return.
pub fn watched<R>(what: impl FnOnce() -> String, call: impl FnOnce() -> R) -> R {
    if let Ok(mut text) = WHAT.lock() {
        *text = what();
    }
    STEP.fetch_add(1, Relaxed);
    IS_BUSY.store(true, Relaxed);
    let result = call();
    IS_BUSY.store(false, Relaxed);
    result
}
