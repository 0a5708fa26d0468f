//! A network namespace without a route to anywhere, in which a test may use any address.

use super::folder::Folder;
use super::program::{find, run};
use crate::support::daemon::Daemon;

/// The namespace exists as long as this value.
pub struct Network {
    /// Keeps the namespace alive.
    holder: Daemon,
    folder: Folder,
}

impl Network {
    pub fn new() -> Self {
        let (folder, unshare) = (Folder::new(), find("unshare", "util-linux"));
        let ready = folder.at("ready");
        let script = "ip link set lo up && touch \"$0\" && exec sleep infinity";
        let mut holder = Daemon::spawn("network", folder.path(), &unshare, &["--net", "sh", "-c", script, &ready]);
        holder.wait_until(|| folder.path().join("ready").exists());
        Self { holder, folder }
    }

    /// The command that starts a program in the namespace.
    pub fn enter(&self) -> [String; 3] {
        let nsenter = find("nsenter", "util-linux");
        [nsenter.to_str().expect("a plain path"), &format!("--net=/proc/{}/ns/net", self.holder.pid()), "--"]
            .map(str::to_owned)
    }

    /// The same, with names of hosts: each an address and a name.
    pub fn enter_with_hosts(&self, hosts: &[(&str, &str)]) -> Vec<String> {
        let lines: String = hosts.iter().map(|(address, name)| format!("{address} {name}\n")).collect();
        let file = self.folder.write("hosts", &format!("127.0.0.1 localhost\n{lines}"));
        let script = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", file.display());
        let own_mounts = ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned);
        [self.enter().to_vec(), own_mounts.to_vec()].concat()
    }

    /// The status of a GET from within the namespace.
    pub fn status_of(&self, url: &str) -> String {
        let enter = self.enter();
        let [nsenter, net, end] = enter.each_ref().map(String::as_str);
        let curl = ["curl", "--silent", "--retry", "50", "--retry-delay", "1", "--retry-all-errors", "--noproxy", "*"];
        let args = [&[net, end], &curl[..], &["--output", "/dev/null", "--write-out", "%{http_code}", url]].concat();
        run(std::path::Path::new(nsenter), &args, &[])
    }
}
