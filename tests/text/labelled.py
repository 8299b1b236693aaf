"""Texts with a verdict: what the default blocks must keep, and what they must drop, each with the rule it should hit.

English and Japanese, written for this file. A case is (name, language, rule, text); rule "" keeps. Clean prose stands
beside the boilerplate, link lists, keyword spam, mojibake and machine noise of real crawls. PAGES are cases in HTML, of
shapes that a real crawl has, with a piece of text that must be in what is kept.
"""

# ruff: noqa: E501  # texts are whole
from __future__ import annotations

import random

_MORE = " So it has been for a long time. Whoever comes later may see it in another way."
_EN = (
    "The ferry left the island before dawn, and the people who had come to see it off walked home along the beach. "
    "It was the first cold morning of the year. Someone had lit a fire behind the boat house, and the smoke drifted "
    "over the water until it was lost in the fog. Nobody spoke much, because everything that had to be said was said "
    "the night before, and the rest could wait for letters.",
    "Yeast is a living thing, and it has to be treated with some care. Warm the milk to the heat of your hand, stir "
    "in the sugar, and let the yeast stand in it for ten minutes. When bubbles rise, it is ready. Knead the dough until "
    "it no longer sticks to the bowl; this takes longer than most recipes say, and it cannot be hurried with flour.",
    "To measure the distance of a star, astronomers look at it twice, half a year apart. The earth has moved in the "
    "meantime, and near stars seem to shift against those behind them. The shift is tiny, less than a second of arc "
    "even for the nearest. It was first seen in 1838, after two centuries in which many had tried and failed.",
    "A library has two enemies that are easy to forget, and both of them are friendly. One is sunlight, which bleaches "
    "the backs of books within a few summers. The other is the reader with a cup of coffee. The old rule against "
    "drinks was dropped some years ago, and the number of damaged books has doubled since then.",
    "The committee met on Tuesday to discuss the repair of the bridge. Three offers had been received, and the "
    "cheapest of them was rejected because it did not include the work on the foundations. The members agreed that the "
    "second offer should be accepted, with the condition that the road remains open to buses during the work.",
    "When the river rises, the gates are closed by two people with a long iron key. This has been done in the same way "
    "since the wall was built, and the key hangs in the town hall behind glass. Last spring a motor was fitted. It "
    "worked well for a month, and then the old key was needed again, because of a storm that cut the power.",
    "Good handwriting is a matter of rhythm more than of form. If you watch a person who writes well, you will see "
    "that the pen hardly ever stops, and that the hand moves across the page with the arm. Children are taught the "
    "letters one by one, and so they learn to stop after each of them, which is the very thing to be avoided.",
    "The seeds have to be sown in autumn, since they need the cold to wake up. Cover them with a thin layer of sand and "
    "mark the place, for you will have forgotten it by spring. The first leaves look like grass and are often pulled "
    "out by mistake. In the second year the plant flowers, and then it comes back without any help at all.",
    "Insurance was invented by merchants who could not afford to lose a ship. Ten of them would each take a tenth of "
    "the cargo of ten vessels, and so a wreck was a nuisance and not the end of a house. The idea that a stranger could "
    "carry the risk for money came later, and for a long time it was thought to be a kind of gambling.",
    "My grandmother kept bees, and she talked to them as other people talk to dogs. When there was a death in the "
    "family she went to the hives and told them, knocking three times with the key of the house. I asked her once what "
    "would happen if she forgot. She said that she did not know, and that she did not want to be the one to find out.",
    "The second movement begins with a long note on the oboe, and for eight bars nothing else happens. Conductors used "
    "to hurry over it. In the new recording the orchestra takes its time, and the entry of the strings is so soft that "
    "one notices them only when they stop. It is the best thing that these players have done so far.",
    "Before the telephone, news of a fire was carried by bells. Each parish had its own signal, and the men of the "
    "brigade could tell by counting where they were needed. The system had one fault that nobody could mend: when the "
    "church itself was burning, there was no bell to ring, and so every village kept a drum in a second place.",
)  # fmt: skip
_RAW = _EN  # without the ending, which would be an echo where texts are joined
_EN = tuple(text + _MORE for text in _RAW)
_JA = (
    "夜明け前に船は島を離れ、見送りに来た人びとは浜辺を歩いて家に帰った。その年で最初の寒い朝だった。船小屋の裏で誰かが火を"
    "焚いていて、煙は霧に紛れるまで水の上を漂っていた。言うべきことは前の晩にすべて言ってしまったので、口をきく者はほとんど"
    "いなかった。残りは手紙でよかったのである。",
    "酵母は生き物なので、丁寧に扱わなければならない。牛乳を人肌に温め、砂糖を溶かし、酵母を入れて十分ほど置く。泡が立てば"
    "使える。生地は鉢につかなくなるまでよくこねる。たいていの本に書いてあるより長くかかるが、粉を足して急いではいけない。",
    "星までの距離を測るには、半年の間をおいて同じ星を二度見る。その間に地球は動いているから、近い星は遠い星に対してわずかに"
    "ずれて見える。そのずれは最も近い星でも一秒角に満たない。初めて確かめられたのは1838年のことで、それまで二百年にわたって"
    "多くの人が試みては失敗していた。",
    "図書館には忘れられがちな敵が二つある。一つは日光で、本の背を数年の夏で白くしてしまう。もう一つはコーヒーを手にした読者で"
    "ある。飲み物を禁じる古い決まりは何年か前になくなったが、それ以来、傷んだ本の数は二倍に増えたという。",
    "委員会は火曜日に開かれ、橋の修理について話し合った。三つの見積もりが届いていたが、最も安いものは基礎の工事を含んでいな"
    "かったために退けられた。二番目の案を受け入れ、工事の間もバスが通れるようにすることを条件とする、という点で意見が一致した。",
    "川の水が増えると、二人がかりで長い鉄の鍵を使って門を閉める。堤ができて以来ずっとこのやり方で、鍵は役場のガラスの中に"
    "掛けてある。去年の春には電動機が取りつけられた。ひと月はよく動いたが、嵐で停電した夜には、やはり古い鍵が必要になった。",
    "よい字を書くことは、形よりもむしろ調子の問題である。字の上手な人を見ていると、ペンがほとんど止まらず、手が腕といっしょに"
    "紙の上を動いていくのがわかる。子どもは一字ずつ習うので、一字ごとに止まる癖がつく。それこそ避けるべきことなのだ。",
    "種は寒さに当たらないと目を覚まさないので、秋のうちに蒔いておく。薄く砂をかけ、場所に印をつけておこう。春には忘れている"
    "からだ。最初の葉は草のように見え、まちがって抜かれることが多い。二年目に花が咲き、それからは手をかけなくても生えてくる。",
    "保険は、船を一隻失うだけで立ち行かなくなる商人たちが考え出したものだ。十人がそれぞれ十隻の荷の十分の一を引き受ければ、"
    "難破は災難ではあっても家の終わりではない。見知らぬ人が金を取って危険を引き受けるという考えは、ずっと後になって現れた。",
    "祖母は蜜蜂を飼っていて、よその人が犬に話しかけるように蜂に話しかけた。家に不幸があると、巣箱のところへ行き、家の鍵で三度"
    "たたいて知らせた。忘れたらどうなるのかと聞いたことがある。知らないし、それを確かめる役にはなりたくない、と祖母は答えた。",
    "第二楽章はオーボエの長い音で始まり、八小節のあいだ他には何も起こらない。指揮者はここを急ぎがちだった。新しい録音では"
    "たっぷりと時間が取られ、弦はいつ入ったのか、止むまで気づかないほど静かである。この楽団のこれまでで最もよい演奏だと思う。",
    "電話ができる前、火事の知らせは鐘で伝えられた。村ごとに打ち方が決まっていて、火消しは数を数えればどこへ行けばよいかが"
    "わかった。この仕組みには一つだけ直せない欠点があった。寺が燃えているときには鳴らす鐘がない。そこでどの村にも太鼓があった。",
)  # fmt: skip

KEEP = [
    *((f"en-prose-{i}", "en", "", text) for i, text in enumerate(_EN)),
    *((f"ja-prose-{i}", "ja", "", text) for i, text in enumerate(_JA)),
    ("en-dialogue", "en", "", _EN[0] + '\n\n"Did you see the boat?" she asked.\n\n"I saw the light of it, and that is all," he said.'),
    ("en-numbers", "en", "", _EN[4] + " The cost is $1,250,000, of which 40% is to be paid in the year that begins in May 2026."),
    ("ja-dialogue", "ja", "", _JA[0] + "\n\n「船を見たかい」と彼女は聞いた。\n\n「明かりだけは見たよ」と彼は答えた。"),
    ("ja-latin", "ja", "", _JA[2] + "この方法は年周視差（parallax）と呼ばれ、単位にはパーセク（parsec）が使われる。"),
    ("ja-euc-as-latin", "ja", "", _JA[1].encode("euc_jp").decode("latin-1")),
    ("en-utf8-as-windows", "en", "", (_EN[9] + " “Ask them,” she said — and I did, café or no café.").encode().decode("cp1252", "replace")),
]  # fmt: skip

_MENU = "\n".join(
    ("Home", "About us", "Products", "Contact", "Sign in", "Register", "Help", "Cart", "Search", "News") * 7
)
_LINKS = "\n".join(
    f"{name} and the {name.lower()} of old"
    for name in ["Anna", "Boris", "Carla", "David", "Emma", "Frank", "Gerda", "Hans"] * 9
)
_KEYWORDS = "cheap flights cheap hotels cheap cars best price book now " * 30
_JA_MENU = "\n".join(
    ("ホーム", "会社概要", "製品情報", "お問い合わせ", "採用情報", "サイトマップ", "ログイン", "新着情報") * 5
)
_JA_KEYWORDS = (
    "激安、格安、通販、送料無料、人気、ランキング、口コミ、比較、最安値、在庫、即日発送、新品、中古、買取、査定、予約、"
    * 4
)
_JA_LINKS = "\n".join(
    f"{name}の商品一覧はこちら"
    for name in ["東京", "大阪", "京都", "福岡", "札幌", "仙台", "広島", "那覇", "横浜", "神戸"] * 4
)
_SENTENCE = "The boat is late and the sea is calm to the end of the day. "

_LONG = [
    "internationalization",
    "misunderstandings",
    "responsibilities",
    "characterization",
    "notwithstanding",
    "acknowledgement",
    "transportation",
    "administration",
    "circumstances",
    "extraordinary",
    "communication",
    "representative",
    "entrepreneurship",
    "disproportionate",
    "straightforwardness",
    "incomprehensible",
    "counterproductive",
    "institutional",
    "thermodynamics",
    "architectural",
    "photosynthesis",
    "constitutional",
    "simultaneously",
    "unquestionably",
    "mathematicians",
    "philosophical",
    "environmental",
]
_NOUNS = [
    "stone",
    "window",
    "garden",
    "harbour",
    "winter",
    "kitchen",
    "bridge",
    "forest",
    "summer",
    "engine",
    "letter",
    "market",
    "river",
    "silver",
    "copper",
    "paper",
    "mountain",
    "teacher",
    "answer",
    "morning",
    "question",
    "village",
    "bakery",
    "blanket",
    "candle",
    "carpet",
    "chimney",
    "church",
    "curtain",
    "drawer",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "lantern",
    "mirror",
    "needle",
    "orchard",
    "painter",
]


def _mixed(words: list[str], times: int) -> list[str]:
    rng = random.Random(7)
    return [word for _ in range(times) for word in rng.sample(words, len(words))]


DROP = [
    ("en-short", "en", "gopher_quality.words", "The page that you have asked for is not here."),
    ("en-menu", "en", "gopher_repetition.duplicate_lines", _RAW[0] + "\n" + _MENU),
    ("en-links", "en", "gopher_repetition.duplicate_lines", _LINKS),
    ("en-keywords", "en", "gopher_repetition.", _KEYWORDS),
    ("en-echo", "en", "gopher_repetition.", _SENTENCE * 20),
    ("en-paragraph-twice", "en", "gopher_repetition.duplicate_", "\n\n".join([_RAW[0], _RAW[0], _RAW[1]])),
    ("en-symbols", "en", "gopher_quality.symbol_to_word", " ".join(("#" * (i % 5 == 0)) + word for i, word in enumerate(_RAW[1].split()))),
    ("en-bullets", "en", "gopher_quality.bullet_lines", "\n".join(f"- {s.strip()}." for t in _RAW[:4] for s in t.split(".") if s)),
    ("en-ellipses", "en", "gopher_quality.ellipsis_lines", "\n".join(f"{s.strip()} ..." for t in _RAW[:6] for s in t.split(".") if s)),
    ("en-digits", "en", "gopher_quality.", "The " + " ".join(str(7 * i * i + 1009) for i in range(80)) + " of and to with."),
    ("en-long-words", "en", "gopher_quality.mean_word_length", " ".join(_mixed(_LONG, 3))),
    ("en-tiny-words", "en", "gopher_quality.mean_word_length", " ".join("abcdefghijklmnopqrstuvwxyz"[i % 26] + "xyzw"[i % 3] for i in range(0, 400, 7))),
    ("en-no-function-words", "en", "gopher_quality.stop_words", " ".join(_mixed(_NOUNS, 3))),
    ("en-lorem", "en", "c4.lorem_ipsum", _EN[0] + " Lorem ipsum dolor sit amet, as the printers say."),
    ("en-code", "en", "c4.curly_bracket", _EN[0] + " function go() { return 1; }"),
    ("en-few-sentences", "en", "c4.sentences", _EN[0].replace(".", " and").replace("?", " and")),
    ("en-titles", "en", "fineweb.", "\n".join(s.strip()[:60] for t in _RAW for s in t.split(".") if len(s) > 20) + "\nIt ended on a Monday. It did so late. It was cold. Yes, it was. So the boat was late."),
    ("en-line-echo", "en", "fineweb.duplicate_line_chars", "\n".join([*_RAW[:5], "Read more about the harbour.", *_RAW[5:8], "Read more about the harbour.", "Read more about the harbour."])),
    ("ja-short", "ja", "unspaced.characters", "お探しのページは見つかりませんでした。"),
    ("ja-menu", "ja", "unspaced.", _JA_MENU),
    ("ja-keywords", "ja", "unspaced.", _JA_KEYWORDS),
    ("ja-links", "ja", "unspaced.", _JA_LINKS),
    ("ja-echo", "ja", "unspaced.", "今日は船が遅れています。明日もまた船が遅れるでしょう。" * 12),
    ("ja-symbols", "ja", "unspaced.symbols", "★☆★" + _JA[0].replace("、", "★★★").replace("。", "■■■■")),
    ("ja-katakana-list", "ja", "unspaced.", "\n".join(["スマートフォン", "ケース", "カバー", "アクセサリー", "ストラップ", "フィルム", "バッテリー"] * 4)),
    ("ja-kanji-only", "ja", "language_", "株式会社東京商事本社営業部総務課人事課経理課企画課開発課製造課品質管理課物流課" * 3 + "。"),
    ("ja-digits", "ja", "unspaced.digits", _JA[0] + "。".join(str(30112233 + 7919 * i) for i in range(20)) + "である。"),
    ("ja-no-end", "ja", "unspaced.", _JA[0].replace("。", "").replace("、", "") * 3),
    ("ja-paragraph-twice", "ja", "unspaced.", "\n".join([_JA[0], _JA[0], _JA[1]])),
    ("ja-lost-bytes", "ja", "mojibake", "".join("\ufffd" if i % 4 == 0 else c for i, c in enumerate(_JA[0]))),
    ("en-lost-bytes", "en", "mojibake", _EN[0].replace("e", "\ufffd")),
    ("ja-half-utf8", "ja", "mojibake", "縺薙縺縺ｯ繝縺ｮ縺" * 20 + "。"),
]  # fmt: skip

_FACTS = "".join(
    f"<li>{sentence.strip()}, <a href=/x>as they say</a>.</li>" for sentence in _RAW[0].split(".") if sentence
)
_NAV = "".join(
    f"<li><a href=/{i}>{name}</a></li>" for i, name in enumerate(("Home", "About us", "Products", "Sign in") * 8)
)
_SETUP = "from ferry import boat\n\nboat.go(to = 'the island')"  # C4 removes lines of one or two words

PAGES = [
    # a heading, a line and a list of sentences just below <body>: resiliparse alone took the list for a menu
    ("en-facts-in-a-list", "en", "", f"<h1>Facts</h1><p>In no particular order, here they are.</p><ul>{_FACTS}</ul>", "first cold morning"),
    ("ja-facts-in-a-list", "ja", "", f"<h1>覚え書き</h1><p>順不同で記す。</p><ul>{''.join(f'<li>{s}。</li>' for s in _JA[3].split('。') if s)}</ul>", "日光で"),
    # code in a <figure>, as Jekyll writes it: resiliparse alone left a text that points at nothing
    ("en-code-in-a-figure", "en", "", f"<p>{_RAW[1]}</p><p>{_RAW[5]}</p><p>{_RAW[6]}</p><p>This is the file:</p><figure class=highlight><pre><code>{_SETUP}</code></pre></figure>", _SETUP),
    ("en-list-of-links", "en", "gopher_quality.words", f"<h1>Pages</h1><p>Here they are.</p><ul>{_NAV}</ul>", ""),
    ("en-menu-beside-prose", "en", "", f"<ul>{_NAV}</ul><main><h1>Winter</h1><p>{_EN[0]}</p></main>", "The ferry left"),
    ("ja-menu-beside-prose", "ja", "", f"<ul>{''.join(f'<li><a href=/>{name}</a></li>' for name in ('会社概要', '製品情報', '採用情報') * 8)}</ul><p>{_JA[0]}</p>", "夜明け前"),
]  # fmt: skip
