//! A program that a test starts, with its own process group and log. It never outlives the test.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    /// Once the process is awaited, its process group may belong to another one.
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Starts the command in its own process group, with its output in `<name>.log`.
    pub fn spawn(name: &str, folder: &Path, program: &Path, args: &[&str]) -> Self {
        Self::spawn_with(name, folder, program, args, &[])
    }

    /// The same with environment variables added.
    pub fn spawn_with(name: &str, folder: &Path, program: &Path, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let log = folder.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log);
        let out = out.expect("the log can be written");
        // setpriv makes the kernel end the program with this process, however that ends.
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

    /// Waits until `ready` returns true. Fails the test with the log if the program ends before.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) {
        let deadline = Instant::now() + START_TIMEOUT;
        while !ready() {
            if let Some(status) = self.exited() {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            assert!(Instant::now() < deadline, "{} is not ready:\n{}", self.name, self.log());
            sleep(POLL_INTERVAL);
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child process can be queried")
    }

    /// Stops it like a service manager: with SIGTERM, and with SIGKILL after a time-out.
    pub fn stop(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline && self.exited().is_none() {
            sleep(POLL_INTERVAL);
        }
        self.kill()
    }

    /// Kills it and every process in its group.
    pub fn kill(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        self.signal(Signal::SIGKILL);
        let status = self.child.wait().expect("a child process can be awaited");
        self.ended = Some(status);
        status
    }

    fn signal(&self, signal: Signal) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        // An error means that no process is left in the group.
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

/// A free loopback port, below those that the kernel assigns.
pub fn free_port() -> u16 {
    let candidates = std::iter::repeat_with(|| fastrand::u16(10_000..32_000));
    let mut free = candidates.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("the candidates do not end")
}
