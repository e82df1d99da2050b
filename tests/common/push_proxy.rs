//! A TCP proxy that understands what passes through it: it can drop pushes, answer requests in the
//! server's place, hold up the requests of one connection, and let a connection go silent.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Passes everything on, until it is told otherwise. Ends with the value.
pub struct PushProxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    swallows_pushes: AtomicBool,
    /// Commands that do not reach the server, and what is answered instead.
    answers: Mutex<HashMap<&'static str, &'static str>>,
    stopped: AtomicBool,
    /// Connections, in the order in which they were opened, whose requests wait.
    held: Mutex<HashSet<usize>>,
    waiting: AtomicUsize,
    /// The connection that carries these bytes next goes silent behind them.
    last_words: Mutex<Option<String>>,
    /// Connections on which nothing passes any more, either way.
    silent: Mutex<HashSet<usize>>,
    streams: Mutex<Vec<TcpStream>>,
}

impl PushProxy {
    /// Stands in front of the server at a loopback port.
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(State::default());
        let of_thread = Arc::clone(&state);
        thread::spawn(move || of_thread.accept(&listener, server));
        Self { port, state }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From now on no push reaches a client.
    pub fn swallow_pushes(&self) {
        self.state.swallows_pushes.store(true, Ordering::SeqCst);
    }

    /// From now on it is as if the server were older than RESP3.
    pub fn refuse_hello(&self) {
        self.answer("HELLO", "ERR unknown command 'HELLO'");
    }

    /// From now on a command is answered with an error, or, if that is empty, by hanging up.
    pub fn answer(&self, command: &'static str, error: &'static str) {
        let mut answers = self.state.answers.lock().expect("no panic");
        answers.insert(command, error);
    }

    /// From now on a command reaches the server again.
    pub fn let_pass(&self, command: &str) {
        let mut answers = self.state.answers.lock().expect("no panic");
        answers.remove(command);
    }

    /// Holds up the requests of a connection, by its number.
    pub fn hold(&self, connection: usize) {
        let mut held = self.state.held.lock().expect("no panic");
        held.insert(connection);
    }

    pub fn let_go(&self, connection: usize) {
        let mut held = self.state.held.lock().expect("no panic");
        held.remove(&connection);
    }

    /// The connection that carries the next request with `words` goes silent: the server gets that
    /// request, but its reply and all that follows vanish, without an end of the connection.
    pub fn go_silent_behind(&self, words: &str) {
        let mut last_words = self.state.last_words.lock().expect("no panic");
        *last_words = Some(words.to_owned());
    }

    /// How many connections have a request that is held up.
    pub fn waiting(&self) -> usize {
        self.state.waiting.load(Ordering::SeqCst)
    }
}

impl Drop for PushProxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        for stream in self.state.streams.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the listener, which then sees that it is to end.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    fn accept(self: Arc<Self>, listener: &TcpListener, server: u16) {
        for (number, client) in listener.incoming().enumerate() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else { continue };
            let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else {
                continue;
            };
            for stream in [&client, &upstream] {
                let _ = stream.set_nodelay(true);
                self.streams.lock().expect("no panic").push(copy(stream));
            }
            let (state, from, to) = (Arc::clone(&self), copy(&client), copy(&upstream));
            let requests = move |frame: &[u8]| state.request(number, frame, &from, &to);
            thread::spawn(pump(copy(&client), copy(&upstream), requests));
            let (state, to) = (Arc::clone(&self), copy(&client));
            let replies = move |frame: &[u8]| {
                let swallow = frame[0] == b'>' && state.swallows_pushes.load(Ordering::SeqCst);
                swallow || state.is_silent(number) || (&to).write_all(frame).is_ok()
            };
            thread::spawn(pump(upstream, client, replies));
        }
    }

    /// Passes a request on; false if that failed.
    fn request(
        &self,
        number: usize,
        frame: &[u8],
        mut from: &TcpStream,
        mut to: &TcpStream,
    ) -> bool {
        let is_held = || self.held.lock().expect("no panic").contains(&number);
        if is_held() {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            while is_held() && !self.stopped.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        if self.is_silent(number) {
            return true;
        }
        let mut last_words = self.last_words.lock().expect("no panic");
        if last_words.as_ref().is_some_and(|words| holds(frame, words)) {
            *last_words = None;
            self.silent.lock().expect("no panic").insert(number);
        }
        drop(last_words);
        match self.answer_to(frame) {
            None => to.write_all(frame).is_ok(),
            Some("") => false,
            Some(error) => from.write_all(format!("-{error}\r\n").as_bytes()).is_ok(),
        }
    }

    fn answer_to(&self, frame: &[u8]) -> Option<&'static str> {
        let command = frame.split(|&byte| byte == b'\n').nth(2)?;
        let command = std::str::from_utf8(command).ok()?.trim_end();
        let answers = self.answers.lock().expect("no panic");
        answers.get(command).copied()
    }

    fn is_silent(&self, number: usize) -> bool {
        self.silent.lock().expect("no panic").contains(&number)
    }
}

fn holds(frame: &[u8], words: &str) -> bool {
    let words = words.as_bytes();
    frame.windows(words.len()).any(|window| window == words)
}

fn copy(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a second handle")
}

/// Reads frames and does something with each, until that fails.
fn pump(
    mut from: TcpStream,
    to: TcpStream,
    mut each: impl FnMut(&[u8]) -> bool + Send + 'static,
) -> impl FnOnce() + Send + 'static {
    move || {
        let mut pending = Vec::new();
        let mut bytes = [0; 16 * 1024];
        'open: while let Ok(length @ 1..) = from.read(&mut bytes) {
            pending.extend_from_slice(&bytes[..length]);
            while let Some(length) = frame_length(&pending) {
                let frame: Vec<u8> = pending.drain(..length).collect();
                if !each(&frame) {
                    break 'open;
                }
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

/// The length of the RESP value that `bytes` begin with, if all of it is there.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|window| window == b"\r\n")? + 2;
    let number = || {
        let text = std::str::from_utf8(&bytes[1..line - 2]).expect("a number");
        text.parse::<i64>().expect("a number")
    };
    let items = match bytes[0] {
        b'$' | b'=' | b'!' => {
            let length = usize::try_from(number()).map_or(line, |length| line + length + 2);
            return (bytes.len() >= length).then_some(length);
        }
        b'*' | b'~' | b'>' => number(),
        b'%' => 2 * number(),
        b'|' => 2 * number() + 1,
        _ => return Some(line),
    };
    let mut length = line;
    for _ in 0..items {
        length += frame_length(&bytes[length..])?;
    }
    Some(length)
}
