//! The scripted upstream: a registry on a loopback port that serves what it is given, says what it
//! is told to say, and remembers what it was asked.
//!
//! Order of a request: token endpoint, then authentication, then the script of its path, then what
//! a well-behaved registry says. A script therefore is not used up by a request that is challenged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::auth::{Auth, Bearer, TokenDesk};
use super::image::{Content, Image, Index};
use super::registry::{self, Repositories};
use super::script::{Reply, Scripts};
use super::wire::{self, Answer, Seen, Sent};

pub struct Upstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    /// While it is down: the port, so that nobody else gets it, without anybody listening there.
    reserved: Mutex<Option<TcpSocket>>,
}

/// What is said to a request before anything else is thought of.
type Manners = Arc<dyn Fn(&Seen) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct Shared {
    repositories: Mutex<Repositories>,
    scripts: Scripts,
    auth: Mutex<Auth>,
    desk: Mutex<Option<Arc<TokenDesk>>>,
    seen: Mutex<Vec<Seen>>,
    manners: Mutex<Option<Manners>>,
    bytes_sent: AtomicU64,
    abandoned: AtomicUsize,
}

impl Upstream {
    /// An empty, open registry on a free loopback port. It ends when it is dropped.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a loopback port is free");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { addr, shared, accepting: Mutex::new(Some(accepting)), reserved: Mutex::default() }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:<port>` and then the path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// The machine is gone: the port is closed, and so is every connection.
    pub async fn go_down(&self) {
        let accepting = self.accepting.lock().take();
        if let Some(accepting) = accepting {
            accepting.abort();
            // Its end has been awaited when the port is free again.
            drop(accepting.await);
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("a socket's option");
            socket.bind(self.addr).expect("the port is still free");
            *self.reserved.lock() = Some(socket);
        }
    }

    /// Listens again, on the same port, with the same content and memory.
    pub async fn come_back(&self) {
        let socket = self.reserved.lock().take().expect("it is down");
        let listener = socket.listen(1024).expect("the port is ours");
        let accepting = tokio::spawn(accept(listener, Arc::clone(&self.shared)));
        *self.accepting.lock() = Some(accepting);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.lock().take() {
            accepting.abort();
        }
    }
}

// === what it serves ===

impl Upstream {
    /// The manifest under the tag and its digest, the config and the layers under theirs.
    pub fn add_image(&self, repository: &str, tag: &str, image: &Image) {
        self.add_manifest(repository, &image.manifest);
        for blob in image.blobs() {
            self.add_blob(repository, blob);
        }
        self.tag(repository, tag, image.digest());
    }

    /// The index under the tag, and all its images by digest.
    pub fn add_index(&self, repository: &str, tag: &str, index: &Index) {
        for image in &index.images {
            self.add_manifest(repository, &image.manifest);
            for blob in image.blobs() {
                self.add_blob(repository, blob);
            }
        }
        self.add_manifest(repository, &index.manifest);
        self.tag(repository, tag, index.digest());
    }

    pub fn add_manifest(&self, repository: &str, manifest: &Content) {
        self.change(repository, |repository| {
            repository.manifests.insert(manifest.digest.clone(), manifest.clone());
        });
    }

    pub fn add_blob(&self, repository: &str, blob: &Content) {
        self.change(repository, |repository| {
            repository.blobs.insert(blob.digest.clone(), blob.bytes.clone());
        });
    }

    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.change(repository, |repository| {
            repository.tags.insert(tag.to_owned(), digest.to_owned());
        });
    }

    pub fn remove_tag(&self, repository: &str, tag: &str) {
        self.change(repository, |repository| {
            repository.tags.remove(tag);
        });
    }

    /// Everything under this name is forgotten.
    pub fn remove_repository(&self, repository: &str) {
        self.shared.repositories.lock().remove(repository);
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut registry::Repository)) {
        change(self.shared.repositories.lock().entry(name.to_owned()).or_default());
    }
}

// === what it is told to say ===

impl Upstream {
    /// These replies, one per request, and after them the usual answer.
    /// `*` stands for every method, and at the end of the path for everything that follows.
    pub fn script(&self, method: &str, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies = replies.into_iter().collect();
        self.shared.scripts.add(method, path, replies, None);
    }

    /// This reply, every time.
    pub fn always(&self, method: &str, path: &str, reply: Reply) {
        self.shared.scripts.add(method, path, Vec::new(), Some(reply));
    }

    /// Comes before authentication and scripts: a reply with a status is the answer, one without changes the usual one,
    /// and `None` leaves all as it is.
    pub fn behave(&self, manners: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) {
        *self.shared.manners.lock() = Some(Arc::new(manners));
    }

    /// From now on only the usual answers.
    pub fn end_scripts(&self) {
        self.shared.scripts.clear();
    }

    pub fn require_basic(&self, user: &str, password: &str) {
        *self.shared.auth.lock() = Auth::basic(user, password);
    }

    /// Asks for tokens, and gives them itself at `/token`.
    pub fn require_bearer(&self, manners: Bearer) {
        self.require_bearer_from(self, manners);
    }

    /// Asks for tokens that the other listener gives at its `/token`.
    pub fn require_bearer_from(&self, other: &Self, manners: Bearer) {
        let desk = Arc::new(TokenDesk::new(manners));
        *other.shared.desk.lock() = Some(Arc::clone(&desk));
        *self.shared.auth.lock() = Auth::Bearer { realm: other.url("/token"), desk };
    }

    /// Everybody may read again.
    pub fn require_nothing(&self) {
        *self.shared.auth.lock() = Auth::Open;
    }

    /// Every token given so far is refused from now on.
    pub fn revoke_tokens(&self) {
        if let Auth::Bearer { desk, .. } = &*self.shared.auth.lock() {
            desk.revoke_all();
        }
    }

    /// How many tokens were given for this registry, wherever they are given.
    pub fn tokens_given(&self) -> usize {
        match &*self.shared.auth.lock() {
            Auth::Bearer { desk, .. } => desk.count(),
            Auth::Open | Auth::Basic(_) => 0,
        }
    }
}

// === what it remembers ===

impl Upstream {
    /// Requests of this method for exactly this path, those that were challenged too.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let seen = self.shared.seen.lock();
        seen.iter().filter(|seen| seen.method == method && seen.path == path).count()
    }

    /// Every request, tokens and challenges included, in the order in which they came.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// How many requests came at all.
    pub fn total(&self) -> usize {
        self.shared.seen.lock().len()
    }

    /// Forgets the requests, the bytes and the leavers so far.
    pub fn forget(&self) {
        self.shared.seen.lock().clear();
        self.shared.bytes_sent.store(0, Ordering::SeqCst);
        self.shared.abandoned.store(0, Ordering::SeqCst);
    }

    /// Bytes of bodies that the network took, without heads and chunk frames.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.bytes_sent.load(Ordering::SeqCst)
    }

    /// Replies whose client left before their end.
    pub fn abandoned(&self) -> usize {
        self.shared.abandoned.load(Ordering::SeqCst)
    }
}

// === impl Shared ===

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // The connections live and die with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, Arc::clone(&shared)));
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    drop(stream.set_nodelay(true));
    let mut stream = BufReader::new(stream);
    while let Ok(Some(seen)) = wire::read_request(&mut stream).await {
        shared.seen.lock().push(seen.clone());
        let (answer, reply) = shared.answer(&seen);
        let is_head = seen.method == "HEAD";
        match wire::send(&mut stream, is_head, answer, &reply, &shared.bytes_sent).await {
            Sent::Whole => {}
            Sent::Closed => return,
            Sent::Abandoned => {
                shared.abandoned.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    }
}

impl Shared {
    fn answer(&self, seen: &Seen) -> (Answer, Reply) {
        let manners = self.manners.lock().clone();
        if let Some(reply) = manners.and_then(|manners| manners(seen)) {
            let answers = reply.status.is_none();
            let usual = || registry::answer(seen, &self.repositories.lock(), reply.ignores_range);
            return (if answers { usual() } else { Answer::default() }, reply);
        }
        if seen.path == "/token"
            && let Some(desk) = &*self.desk.lock()
        {
            let reply = self.scripts.next(&seen.method, &seen.path);
            return (desk.answer(seen), reply.unwrap_or_default());
        }
        if let Some(challenge) = self.auth.lock().challenge(seen) {
            return (challenge, Reply::normal());
        }
        let reply = self.scripts.next(&seen.method, &seen.path).unwrap_or_default();
        let repositories = self.repositories.lock();
        (registry::answer(seen, &repositories, reply.ignores_range), reply)
    }
}
