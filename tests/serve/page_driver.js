// The page's own script in node, on a small stand-in for the document, against a real server.
// argv: page.html, URL of the server. Prints one JSON object of what a person would see.
const fs = require("fs");
const [page, url] = process.argv.slice(2);

class Node {
  constructor(tag) { this.localName = tag; this.children = []; this.handlers = {}; this.style = {}; this.dataset = {}; this.value = ""; this.hidden = false; this.own = ""; this.attributes = {}; }
  set textContent(text) { this.own = String(text); this.children = []; }
  get textContent() { return this.own + this.children.map(child => child.textContent).join(""); }
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.own = ""; this.children = nodes; }
  addEventListener(name, act) { this.handlers[name] = act; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  getBoundingClientRect() { return { left: 0, bottom: 0, top: 0 }; }
  focus() {}
  *all() { yield this; for (const child of this.children) yield* child.all(); }
  find(test) { return [...this.all()].filter(test); }
}
const byId = {}, labelled = [];
const html = fs.readFileSync(page, "utf8");
for (const [tag] of html.split("<script>")[0].matchAll(/<(\w+)[^>]*>/g)) {
  const made = new Node(/<(\w+)/.exec(tag)[1]);
  const id = /id="(\w+)"/.exec(tag), label = /data-label="(\w+)"/.exec(tag), value = /value="([^"]*)"/.exec(tag);
  if (id) byId[id[1]] = made;
  if (label) { made.dataset.label = label[1]; labelled.push(made); }
  if (value) made.value = value[1];
  made.checked = / checked/.test(tag);
}
const kept = {};
const here = {
  document: { getElementById: id => byId[id], createElement: tag => new Node(tag), documentElement: {}, querySelectorAll: () => labelled,
              createTextNode: text => { const node = new Node("#text"); node.own = text; return node; } },
  localStorage: { getItem: name => kept[name] ?? null, setItem: (name, value) => { kept[name] = value; } },
  navigator: { language: "en" }, prompt: () => "", innerWidth: 800, innerHeight: 600,
  fetch: async (path, options) => {
    const answer = await fetch(`${url}/${path}`, options);
    onAnswer();
    return answer;
  },
};
let onAnswer = () => {};
const script = html.split("<script>")[1].split("</script>")[0];
const run = new Function(...Object.keys(here), `${script}; return { send, markdown, models, busy: () => running, talks: () => talks };`);
const api = run(...Object.values(here));
const talk = byId.talk;

(async () => {
  await api.models();
  const seen = { model: byId.model.textContent, english: byId.send.textContent };
  byId.language.value = "ja"; byId.language.handlers.change();
  seen.japanese = byId.send.textContent;
  byId.temperature.value = "0";
  byId.text.value = "say hello";
  const lengths = new Set();
  const watch = setInterval(() => lengths.add(talk.textContent.length), 1);
  await api.send();
  clearInterval(watch);
  seen.grew = lengths.size;
  const messages = talk.children;
  seen.roles = messages.map(node => node.className);
  seen.content = api.talks()[0].messages[1].content;
  const fold = messages[1].find(node => node.className === "tokens")[0];
  const spans = fold.children.filter(node => node.localName === "span");
  seen.tokens = spans.length;
  spans[0].handlers.mouseenter();
  seen.card = byId.card.children.map(row => row.textContent);
  seen.drawn = byId.card.children.filter(row => row.className === "drawn").length;
  spans[0].handlers.mouseleave();
  seen.hidden = byId.card.hidden;
  seen.kept = JSON.parse(kept["sekkei.talks"]).length;
  byId.text.value = "again"; byId.temperature.value = "1";
  onAnswer = () => byId.stop.handlers.click(); // the head of the answer is here, its tokens are still to be read
  await api.send();
  onAnswer = () => {};
  seen.stopped = api.talks()[0].messages[3].note;
  byId.text.value = "long ".repeat(3000);
  await api.send();
  seen.failed = talk.children.at(-1).textContent;
  const shown = new Node("div");
  shown.append(...api.markdown("# Title\ntext **bold** `a<b` <img src=x onerror=alert(1)>\n- one\n- two\n\n```js\nlet x;\n```\n[a](https://x.y/) [b](javascript:alert(1))\n\n| h | i |\n|---|:-:|\n| **1** | 2 |\nend"));
  seen.tags = shown.find(node => node.localName !== "#text").map(node => node.localName);
  seen.text = shown.textContent;
  console.log(JSON.stringify(seen));
})();
