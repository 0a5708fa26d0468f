//! A program that a test starts, with its own process group and log, and that never outlives it.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    /// Once it is awaited, its process group may be somebody else's.
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Starts the command in a process group of its own, with what it prints in `<name>.log`.
    pub fn spawn(name: &str, folder: &Path, program: &Path, args: &[&str]) -> Self {
        Self::spawn_with(name, folder, program, args, &[])
    }

    /// The same with environment variables added.
    pub fn spawn_with(name: &str, folder: &Path, program: &Path, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let log = folder.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log);
        let out = out.expect("the log can be written");
        // setpriv makes the kernel end the program with us, however we end.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle on the log"))
            .stderr(out)
            .process_group(0)
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("{} cannot be started: {error}", program.display()));
        Self { name: name.to_owned(), child, log, ended: None }
    }

    /// Waits until `ready` says so; fails the test with the log when the program ends before.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) {
        let deadline = Instant::now() + START;
        while !ready() {
            if let Some(status) = self.exited() {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            assert!(Instant::now() < deadline, "{} is not ready:\n{}", self.name, self.log());
            sleep(LOOK_AGAIN);
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be asked")
    }

    /// Asks it to stop, as a service manager does, and forces it when it does not.
    pub fn stop(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline && self.exited().is_none() {
            sleep(LOOK_AGAIN);
        }
        self.kill()
    }

    /// Ends it and whoever it has started, without a warning, as a power cut would.
    pub fn kill(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        self.signal(Signal::SIGKILL);
        let status = self.child.wait().expect("our own child can be awaited");
        self.ended = Some(status);
        status
    }

    fn signal(&self, signal: Signal) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        // An error means that nobody is left in the group.
        let _ = killpg(group, signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let start = log.len().saturating_sub(4000);
            eprintln!("--- the end of {}'s log\n{}", self.name, log.get(start..).unwrap_or(&log));
        }
        self.stop();
    }
}

/// A loopback port that nobody listens on, below those the kernel hands out by itself.
pub fn free_port() -> u16 {
    let candidates = std::iter::repeat_with(|| fastrand::u16(10_000..32_000));
    let mut free = candidates.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("the candidates do not end")
}
