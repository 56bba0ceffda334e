"""Writes MartletTokenizersTests/Fixtures/chat_templates.json: templates, what they are given, and what transformers renders.

The templates are ours, built from the constructs that the families' templates use. Run with transformers and jinja2 installed:
    python chat_templates.py
"""

import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

cases = []
plain = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "  What is 2 + 2?\n"},
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "Und auf Französisch? 数学 👩‍👩‍👧 <tag> & \"quotes\""},
]
no_system = plain[1:]
tools = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather at a place.\nNow.", "return": {"type": "string"},
        "parameters": {"type": "object", "properties": {
            "place": {"type": "string", "description": "Städte"}, "days": {"type": "integer", "default": 3},
            "units": {"type": "array", "items": {"type": "string", "enum": ["C", "F"]}}, "ratio": {"type": ["number", "null"]}},
            "required": ["place"]}}},
    {"type": "function", "function": {"name": "stop", "description": "Ends.", "parameters": {"type": "object", "properties": {}}}},
]
called = [
    {"role": "user", "content": "Weather in Wien?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Wien", "days": 1.0, "x": None}}}]},
    {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": "{\"t\": 21.5}"},
    {"role": "tool", "name": "stop", "tool_call_id": "abcdef124", "content": "ok"},
    {"role": "assistant", "content": "It is 21.5 °C."},
    {"role": "user", "content": "Thanks"},
]
thinking = [
    {"role": "user", "content": "Hard question"},
    {"role": "assistant", "content": "<think>\nLet me see.\n\n</think>\n\nEasy."},
    {"role": "user", "content": "Another"},
    {"role": "assistant", "content": "Yes.", "reasoning_content": "\nHm.\n"},
]
parts = [
    {"role": "system", "content": [{"type": "text", "text": "Sys "}]},
    {"role": "user", "content": [{"type": "text", "text": " Look: "}, {"type": "image"}, {"type": "text", "text": "what?"}]},
]


def add(name, template, messages=plain, tools=None, documents=None, prompt=True, **variables):
    case = {"name": name, "template": template, "messages": messages, "add_generation_prompt": prompt}
    if tools is not None:
        case["tools"] = tools
    if documents is not None:
        case["documents"] = documents
    if variables:
        case["variables"] = variables
    arguments = dict(conversations=[json.loads(json.dumps(messages))], tools=tools, documents=documents, chat_template=template, **variables)
    try:
        case["expected"] = render_jinja_template(add_generation_prompt=prompt, **arguments)[0][0]
    except Exception as error:
        case["error"] = type(error).__name__
        print(f"{name}: {type(error).__name__}: {error}")
    if "expected" in case and "generation %}" in template:
        _, indices = render_jinja_template(add_generation_prompt=prompt, return_assistant_tokens_mask=True, **arguments)
        case["generated"] = [list(pair) for pair in indices[0]]
    # A generator prints its address.
    if " at 0x" not in case.get("expected", ""):
        cases.append(case)


special = {"bos_token": "<s>", "eos_token": "</s>"}

# ---- The families

chatml = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
add("ChatML", chatml)
add("ChatML without a prompt", chatml, prompt=False)
add("ChatML with generation marks", """{% for message in messages %}
{{- '<|im_start|>' + message.role + '\n' -}}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}
{% else %}{{ message.content }}<|im_end|>{% endif %}
{{ '\n' }}
{%- endfor %}""", [m | {"content": "plain " + m["role"]} for m in plain] + [{"role": "assistant", "content": "second"}])

qwen25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a default assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nCall what you need; signatures stand within <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\nAnswer with <tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <object>}\\n</tool_call><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a default assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
for name, messages in [("plain", plain), ("without system", no_system), ("calls", called)]:
    add(f"Qwen 2.5, {name}", qwen25, messages)
    add(f"Qwen 2.5, {name}, tools", qwen25, messages, tools)

qwen3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
add("Qwen 3", qwen3, thinking, prompt=False)
add("Qwen 3, calls", qwen3, called)
add("Qwen 3, thinking off", qwen3, plain, enable_thinking=False)
add("Qwen 3, thinking on", qwen3, thinking[:3], enable_thinking=True)

llama2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
add("Llama 2", llama2, **special)
add("Llama 2 without system", llama2, no_system, **special)
add("Llama 2, wrong order", llama2, [plain[0], plain[2]], **special)

llama3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message goes into its own slot. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n"}}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("No first user message to put the tools in") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- 'Use {"name": function name, "parameters": dictionary}.\\n\\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
            {{- "<|python_tag|>" + tool_call.name + ".call(" }}
            {%- for arg_name, arg_val in tool_call.arguments | items %}
                {{- arg_name + '="' + arg_val|string + '"' }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- endif %}
            {%- endfor %}
            {{- ")" }}
        {%- else %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
            {{- '{"name": "' + tool_call.name + '", ' }}
            {{- '"parameters": ' }}
            {{- tool_call.arguments | tojson }}
            {{- "}" }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
add("Llama 3", llama3, **special)
add("Llama 3, tools", llama3, called, tools, **special)
add("Llama 3, tools in system", llama3, called, tools, tools_in_user_message=False, **special)
add("Llama 3, built-in tools", llama3, called, builtin_tools=["get_weather", "code_interpreter"], date_string="1 Jan 2025", **special)
add("Llama 3, two calls", llama3, [called[0], called[1] | {"tool_calls": called[1]["tool_calls"] * 2}], tools, **special)
add("Llama 3, no messages left", llama3, [plain[0]], tools, **special)

mistral = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
"""
add("Mistral", mistral, **special)
add("Mistral, tools", mistral, called, tools, **special)
add("Mistral, wrong order", mistral, [plain[1], plain[1]], **special)
add("Mistral, bad id", mistral, [called[0], {"role": "assistant", "tool_calls": [{"id": "x", "function": {}}]}], **special)

gemma = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""
add("Gemma", gemma, no_system, **special)
add("Gemma, system", gemma, plain, **special)
gemma3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""
add("Gemma 3", gemma3, plain, **special)
add("Gemma 3, parts", gemma3, parts, **special)
add("Gemma 3, no content", gemma3, [{"role": "user", "content": 3}], **special)
add("Phi 3", "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}", **special)
add("Zephyr", "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}", **special)

deepseek = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{%- if message['content'] is none %}{{'<|Assistant|><|calls|><|call|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\n' + '```json' + '\n' + tool['function']['arguments']|tojson + '\n' + '```' + '<|endcall|>'}}{%- else %}{{'<|Assistant|>' + message['content']}}{%- endif %}{%- set ns.is_first = true -%}{%- else %}{{'\n' + '<|call|>' + tool['type']}}{%- endif %}{%- endfor %}{{'<|endcalls|><|end|>'}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{%- if ns.is_tool %}{{'<|endoutputs|>' + message['content'] + '<|end|>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + '<|end|>'}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<|outputs|><|output|>' + message['content'] + '<|endoutput|>'}}{%- set ns.is_output_first = false %}{%- else %}{{'<|output|>' + message['content'] + '<|endoutput|>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<|endoutputs|>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\n'}}{% endif %}"""
for name, messages in [("plain", plain), ("thinking", thinking), ("calls", called), ("open call", called[:3])]:
    add(f"DeepSeek R1, {name}", deepseek, messages, **special)

commandr = """{{ bos_token }}
{%- macro json_to_python_type(json_spec) %}
{%- set basic_type_map = {
    "string": "str",
    "number": "float",
    "integer": "int",
    "boolean": "bool"
} %}

{%- if basic_type_map[json_spec.type] is defined %}
    {{- basic_type_map[json_spec.type] }}
{%- elif json_spec.type == "array" %}
    {{- "List[" +  json_to_python_type(json_spec['items']) + "]"}}
{%- elif json_spec.type == "object" %}
    {{- "Dict[str, " + json_to_python_type(json_spec.additionalProperties) + ']'}}
{%- elif json_spec.type is iterable %}
    {{- "Union[" }}
    {%- for t in json_spec.type %}
      {{- json_to_python_type({"type": t}) }}
      {%- if not loop.last %}
        {{- "," }}
    {%- endif %}
    {%- endfor %}
    {{- "]" }}
{%- else %}
    {{- "Any" }}
{%- endif %}
{%- endmacro %}

{%- macro old_tool_parser(tools) %}
{%- for tool in tools %}
    {%- if loop.index0 != 0 %}
        {{- '\\n\\n' }}
    {%- endif %}
    {{- '```python\\ndef ' + tool.name + '(' }}
    {%- for param_name, param_fields in tool.parameters.properties|items %}
        {%- if loop.index0 != 0 %}
            {{- ', '}}
        {%- endif %}
        {{- param_name + ": " }}
        {%- if not param_fields.required or param_name not in tool.parameters.required %}
            {{- 'Optional[' + json_to_python_type(param_fields) + '] = None'}}
        {%- else %}
            {{- json_to_python_type(param_fields) }}
        {%- endif %}
    {%- endfor %}
    {{- ') -> List[Dict]:\\n    \"\"\"'}}
    {{- tool.description }}
    {%- if tool.parameters.properties|length != 0 %}
        {{- '\\n\\n    Args:\\n        '}}
        {%- for param_name, param_fields in tool.parameters.properties|items|sort(attribute='0') %}
            {%- if loop.index0 != 0 %}
                {{- '\\n        ' }}
            {%- endif %}
            {{- param_name + ' ('}}
            {{- json_to_python_type(param_fields) }}
            {{- ')'}}
        {%- endfor %}
    {%- endif %}
    {{- '\\n    \"\"\"\\n    pass\\n```' }}
{%- endfor %}
{%- endmacro %}
{%- if tools %}{{ old_tool_parser(tools | map(attribute='function') | list) }}{% endif %}
{%- macro document_turn(documents) -%}
{# format documents into chat turn #}
<results>
{% for doc in documents -%}
Document: {{ loop.index0 }}
{% for key, value in doc.items() %}
{{ key|title }}: {{ value }}
{% endfor %}
{%- endfor %}</results>
{%- endmacro %}
{% if documents %}{{ document_turn(documents) }}{% endif %}
{%- for message in messages %}{{ '<|TURN|>' ~ message.role|upper ~ '<|' ~ (message.content or '')|trim ~ '|>' }}{% endfor %}
"""
add("Command-R, endless recursion", commandr, called, tools, **special)
finite = json.loads(json.dumps(tools))
del finite[0]["function"]["parameters"]["properties"]["ratio"]
finite[0]["function"]["parameters"]["properties"]["both"] = {"type": ["number", "string"], "required": True}
add("Command-R, tools", commandr, called, finite, **special)
add("Command-R, documents", commandr, plain, None, [{"title": "tall penguins", "text": "Emperor."}, {"title": "b c", "text": "x\ny"}], **special)

gptoss = """{%- macro render_typescript_type(param_spec, required_params, is_nullable=false) -%}
    {%- if param_spec.type == "array" -%}
        {%- if param_spec['items'] -%}
            {%- if param_spec['items']['type'] == "string" -%}
                {{- "string[]" }}
            {%- else -%}
                {%- set inner_type = render_typescript_type(param_spec['items'], required_params) -%}
                {%- if inner_type == "object | object" or inner_type|length > 50 -%}
                    {{- "any[]" }}
                {%- else -%}
                    {{- inner_type + "[]" }}
                {%- endif -%}
            {%- endif -%}
        {%- endif -%}
        {%- if is_nullable -%}
            {{- " | null" }}
        {%- endif -%}
    {%- elif param_spec.type is defined and param_spec.type is iterable and param_spec.type is not string and param_spec.type is not mapping and param_spec.type[0] is defined -%}
        {{- param_spec.type | join(" | ") }}
    {%- elif param_spec.type == "integer" -%}
        {{- "number" }}{{ " = " ~ param_spec.default|tojson if param_spec.default is defined }}
    {%- elif param_spec.type == "object" -%}
        {%- if param_spec.properties -%}
            {{- "{\\n" }}
            {%- for prop_name, prop_spec in param_spec.properties.items() -%}
                {{- prop_name -}}
                {%- if prop_name not in (param_spec.required or []) -%}
                    {{- "?" }}
                {%- endif -%}
                {{- ": " }}
                {{ render_typescript_type(prop_spec, param_spec.required or []) }}
                {%- if not loop.last -%}
                    {{-", " }}
                {%- endif -%}
            {%- endfor -%}
            {{- "}" }}
        {%- else -%}
            {{- "object" }}
        {%- endif -%}
    {%- else -%}
        {{- "any" }}
    {%- endif -%}
{%- endmacro -%}
{%- macro render_tool_namespace(namespace_name, tools) -%}
    {{- "## " + namespace_name + "\\n\\n" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description|replace("\\n", "\\n// ") + "\\n" }}
        {{- "type "+ tool.name + " = (_: " + render_typescript_type(tool.parameters, []) + ") => any;\\n" }}
    {%- endfor %}
{%- endmacro -%}
{{- render_tool_namespace("functions", tools) if tools else '' }}
{%- set loop_messages = messages %}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in loop_messages -%}
    {%- if 'thinking' in message and message.thinking and not add_generation_prompt %}
        {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking|string + "<|end|>" }}
    {%- endif %}
    {%- if message.tool_calls %}
        {%- for tool_call in message.tool_calls %}
            {%- set last_tool_call.name = tool_call.function.name %}
            {{- " to=functions." + tool_call.function.name + tool_call.function.arguments|tojson }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {{- "<|start|>functions." + last_tool_call.name + " to=assistant<|message|>" + message.content|tojson + "<|end|>" }}
    {%- else %}
        {%- set future_final_message = namespace(found=false) %}
        {%- for future_message in loop_messages[loop.index:] %}
            {%- if future_message.role == 'assistant' and "tool_calls" not in future_message %}
                {%- set future_final_message.found = true %}
            {%- endif %}
        {%- endfor %}
        {{- "<|start|>" ~ message.role ~ ("+" if future_final_message.found else "-") ~ "<|message|>" ~ message.content ~ "<|end|>" }}
    {%- endif %}
{%- endfor -%}"""
add("gpt-oss, tools", gptoss, called, tools)
add("gpt-oss, thinking", gptoss, thinking, prompt=False)

# ---- Construct by construct

data = dict(
    i=7, f=2.5, neg=-3, s="Hello, World", u="Ünïcödé ß ΑΣ ΑΣΑ ǆ", t=" \t x y\n", n=None, yes=True, e="",
    xs=[3, 1, 2], words=["b", "A", "c", "a"], d={"b": 2, "a": 1, "items": [1]}, people=[
        {"name": "Zoe", "age": 30, "tags": ["x"]}, {"name": "adam", "age": 25}, {"name": "Bob", "age": 30, "tags": []}],
    nested=[[1, 2], [3, [4, "q'\"\n"]]], big=12345678901234567, long="a-b-c-d")


def expressions(name, *sources):
    for source in sources:
        add(f"{name}: {source}", "{{ " + source + " }}", [], prompt=False, **data)


expressions(
    "output", "i", "f", "neg", "n", "yes", "e", "s", "u", "xs", "d", "nested", "(1,)", "(1, 'a')", "()", "1.0", "1e20", "1e16", "1e15", "1.5e-7",
    "0.0001", "0.00001", "123456.789", "1/3", "100.0", "-0.0", "'it\\'s'", "'\"'", "['it\\'s', 'a\"b', 'a\"\\'b']", "['\\n\\t\\\\\\x01\\x7f\\u00a0\\u200b\\U0001F600é']",
    "undefined_thing", "'a' 'b'", "0x1F", "0b101", "1_000", "{}", "{1: 'a', 'b': none, (1, 2): 3}", "true", "none", "None", "True", "range(3)",
    "range(1, 9, 2)", "d.items()", "d.keys()", "d.values()", "big", "2**62", "[undefined_thing]", "namespace(a=1)")
expressions(
    "arithmetic", "i + 1", "i - 10", "i * 3", "i / 2", "i // 2", "neg // 2", "neg % 2", "i % -4", "f // 1", "-f // 1", "-7.5 % 2", "2 ** 10", "2 ** -1", "2 ** 0.5",
    "2 ** 3 ** 2", "-2 ** 2", "1 + 2 * 3", "(1 + 2) * 3", "'a' * 3", "[1] * 2", "3 * 'ab'", "'a' * -1", "'a' + 'b'", "[1] + [2]", "(1,) + (2,)", "1 + true", "-i", "+f", "1 ~ 'a' ~ none ~ 2.0",
    "1 - 1 ~ 2", "'a' ~ 1 + 2", "1 / 0", "1 // 0", "1 % 0", "'a' + 1", "1 + 'a'", "none + 1", "[1] + (2,)", "undefined_thing + 1", "-undefined_thing", "-'a'", "undefined_thing ~ 'x'", "1.5 + 2",
    "'%s is %d' % ('x', 3)", "'%05.1f|%-5s|%+d|%x' % (3.14159, 'ab', 5, 255)", "'%s' % 'x'", "'%(a)s' % {'a': 1}", "'%d%%' % 5", "'%s' % ()")
expressions(
    "comparison", "1 == 1.0", "1 == true", "'1' == 1", "i > 5", "i >= 7", "i < 7", "i <= 7.0", "i != 7", "1 < 2 < 3", "1 < 3 < 2", "'a' < 'b'", "'Z' < 'a'", "[1, 2] < [1, 3]", "(1,) == [1]",
    "{'a': 1} == {'a': 1.0}", "xs == [3, 1, 2]", "3 in xs", "9 not in xs", "'lo' in s", "'a' in d", "1 in d", "'' in s", "1 in 'a'", "1 in undefined_thing", "1 in none", "1 in 3", "2 in range(5)", "'a' in d.keys()", "1 < 'a'", "none < 1",
    "n == none", "undefined_thing == undefined_other", "undefined_thing == none", "undefined_thing < 1", "not i == 7", "not (1 in xs)", "1 and 0", "0 or 'x'", "'' or none", "1 and 2 or 3", "not none", "not not 1", "yes and not n")
expressions(
    "conditional", "'a' if yes else 'b'", "'a' if n else 'b'", "'a' if n", "('a' if n) is undefined", "1 if n else 2 if yes else 3", "i if i > 3 else 0", "'x' ~ ('a' if n)")
expressions(
    "subscript", "xs[0]", "xs[-1]", "xs[9]", "xs[9].x", "xs.0", "d.a", "d['a']", "d.zz", "d.zz.y", "d['zz']['y']", "d.items", "d['items']", "d.get('zz')", "d.get('zz', 5)", "d.get('a')", "s[0]", "s[-1]", "s[99]",
    "u[1]", "nested[1][1][1]", "xs[1:]", "xs[:-1]", "xs[::-1]", "xs[::2]", "xs[5:1:-1]", "xs[-2:]", "s[1:4]", "s[::-1]", "s[-5::2]", "u[2:9:3]", "(1,2,3)[1:]", "range(10)[2:8:2]", "range(10)[::-3]|list", "xs[none:2]", "xs['a']", "xs[::0]",
    "undefined_thing.x", "undefined_thing['x']", "undefined_thing[0]", "none.x", "none['x']", "none.x.y", "people[0].tags[0]", "people[1].tags is defined", "d[[1]]", "s.nope", "s.nope()", "'abc'[1.5]", "xs[true]", "d['items'][0]")
expressions(
    "methods", "t.strip()", "t.lstrip() ~ '|'", "t.rstrip()", "s.strip('Hd')", "s.lstrip('eH')", "s.split()", "s.split(',')", "long.split('-', 2)", "long.split('-', maxsplit=1)", "long.rsplit('-', 1)", "' a  b '.split()", "' a  b c '.split(none, 1)", "' a b  c '.rsplit(none, 1)", "'aaa'.split('aa')", "'aaa'.rsplit('aa', 1)", "''.split()", "''.split(',')", "'a'.split('')",
    "s.startswith('He')", "s.startswith(('x', 'H'))", "s.endswith('d')", "s.upper()", "s.lower()", "u.upper()", "u.lower()", "u.title()", "u.capitalize()", "u.swapcase()", "'they\\'re bill\\'s'.title()", "'hello world-foo'.title()", "s.capitalize()", "s.replace('l', 'L')", "s.replace('l', 'L', 1)", "'ab'.replace('', '-')", "','.join(words)", "','.join(xs)", "s.find('o')", "s.rfind('o')", "s.find('zz')", "s.index('o')", "s.index('zz')", "s.count('l')", "s.count('')",
    "'a\\nb\\r\\nc\\x0bd'.splitlines()", "'a\\n\\nb\\n'.splitlines(true)", "'a=b=c'.partition('=')", "'a=b=c'.rpartition('=')", "'abc'.partition('x')", "'abc'.rpartition('x')", "s.removeprefix('Hello')", "s.removesuffix('World')", "s.removeprefix('x')", "'7'.zfill(3)", "'-7'.zfill(4)", "'x'.center(6, '*') ~ '|'", "'xy'.center(5, '*')", "'x'.ljust(3) ~ '|'", "'x'.rjust(3)", "'abc'.isalpha()", "'123'.isdigit()", "'½'.isnumeric()", "'a1'.isalnum()", "' '.isspace()", "''.isspace()", "'AB'.isupper()", "'ab1'.islower()", "'Ab Cd'.istitle()",
    "'{} and {}'.format(1, 'x')", "'{0}{1}{0} {name}'.format('a', 'b', name=3)", "'{{}}'.format()", "'{}'.format()", "d.items()|list", "d.keys()|list", "d.values()|list", "xs.index(2)", "xs.count(1)", "xs.append(4)", "d.update({'a': 2})", "d.pop('a')", "xs.index(99)", "s.strip(1)", "s.upper().lower()", "2.0.is_integer()", "s.upper(1)", "d.copy()", "'ﬁ'.upper()")
expressions(
    "filters", "t|trim", "t|trim ~ '|'", "'xxaxx'|trim('x')", "d|tojson", "nested|tojson", "u|tojson", "u|tojson(ensure_ascii=true)", "d|tojson(indent=2)", "nested|tojson(indent=4)", "{}|tojson(indent=2)", "[]|tojson(indent=1)", "d|tojson(sort_keys=true)", "d|tojson(separators=(',', ':'))", "d|tojson(indent=2, separators=(';', '='))", "'<&>\\''|tojson", "'\\x7f\\x01\\u2028😀/'|tojson", "'😀\\x7f'|tojson(ensure_ascii=true)", "1.0|tojson", "1e100|tojson", "none|tojson", "yes|tojson", "{1: 2, none: 3, true: 4}|tojson", "{1.5: 2}|tojson", "(1, 2)|tojson", "undefined_thing|tojson", "d.items()|tojson", "range(3)|tojson", "d|tojson(indent='--')", "{(1,2): 3}|tojson", "d|tojson(indent=0)", "namespace()|tojson",
    "xs|length", "s|length", "u|count", "d|length", "5|length", "undefined_thing|length", "none|length", "xs|map('string')|length", "d.items()|length", "xs|join", "xs|join(', ')", "xs|join(d=' ')", "people|join('/', attribute='name')", "s|join('.')", "n|default('x')", "n|default('x', true)", "undefined_thing|default('x')", "undefined_thing|d", "e|d('x')", "e|default('x', boolean=true)", "undefined_thing.x|default('y')", "d.zz|default('y')",
    "xs|first", "xs|last", "[]|first", "s|first", "s|last", "d|first", "xs|map('string')|first", "xs|map('string')|last", "[]|last is undefined", "s|upper", "s|lower", "'foo bar-baz (qux) [a]'|title", "u|title", "'hELLO wORLD'|capitalize", "s|replace('l', 'L')", "s|replace('l', 'L', 2)", "123|replace(2, 'x')", "s|list", "d|list", "5|list", "i|string", "none|string", "yes|string + 'x'", "'42'|int", "'4.9'|int", "'abc'|int", "'abc'|int(-1)", "'0x1A'|int(base=16)", "'101'|int(0, 2)", "f|int", "none|int", "'1_000'|int", "' 12 '|int", "'3.5'|float", "'x'|float", "'x'|float(1.5)", "'1e3'|float", "'inf'|float", "5|float", "undefined_thing|int", "undefined_thing|float", "undefined_thing|abs", "undefined_thing|round", "range(10)[7:2:-2]",
    "xs|map('string')|join(',')", "people|map(attribute='name')|list", "people|map(attribute='tags', default='none')|list", "people|map(attribute='tags.0')|list", "words|map('upper')|list", "words|map('replace', 'a', 'x')|list", "xs|map('nope')|list", "xs|map", "xs|select('odd')|list", "xs|select('greaterthan', 1)|list", "[0, 1, '', 'a']|select|list", "[0, 1]|reject|list", "xs|reject('even')|list", "people|selectattr('age', 'equalto', 30)|map(attribute='name')|list", "people|selectattr('tags')|list|length", "people|selectattr('tags', 'defined')|list|length", "people|rejectattr('tags', 'defined')|map(attribute='name')|first", "people|rejectattr('age', 'gt', 26)|list|length", "people|selectattr('age', 'in', [25])|list", "people|selectattr", "'yes' if xs|select('gt', 100) else 'no'", "xs|select('nope')|list",
    "xs|sort", "xs|sort(reverse=true)", "words|sort", "words|sort(case_sensitive=true)", "people|sort(attribute='age')|map(attribute='name')|list", "people|sort(attribute='age,name')|map(attribute='name')|list", "people|sort(true, false, 'age')|map(attribute='name')|list", "[1, 'a']|sort", "words|unique|list", "[1, 1.0, true, 2]|unique|list", "people|unique(attribute='age')|list|length", "d|dictsort", "d|dictsort(by='value')", "{'b': 1, 'A': 2}|dictsort", "{'b': 1, 'a': 2}|dictsort(false, 'value', true)", "{'x': 1}|items|list", "undefined_thing|items|list", "none|items|list", "d|items|first", "xs|reverse|list", "s|reverse", "xs|reverse|join", "'a\\nb\\n\\nc'|indent", "'a\\nb\\n\\nc'|indent(2, true)", "'a\\nb\\n\\nc'|indent(2, blank=true)", "'a\\nb'|indent('> ')", "'a\\nb\\n'|indent(1) ~ '|'", "'<b>'|safe", "'<b a=\"c\">\\'&'|escape", "'<'|e", "neg|abs", "-2.5|abs", "(-2.5)|abs", "'a'|abs", "2.5|round", "3.5|round", "2.675|round(2)", "2.5|round(0, 'floor')", "2.1|round(method='ceil')", "i|round", "1234.5678|round(-2)", "1.25|round(1, 'floor')", "xs|sum", "people|sum(attribute='age')", "xs|sum(start=10)", "[]|sum", "[0.1, 0.2]|sum", "words|sum", "xs|min", "xs|max", "words|min", "words|max(case_sensitive=true)", "people|max(attribute='age')", "[]|min is undefined", "xs|batch(2)|list", "xs|batch(2, 'x')|list", "range(7)|slice(3)|list", "range(7)|slice(3, 'x')|list", "'%s=%s'|format('a', 1)", "'%(a)s'|format(a=2)", "'a b  c_d-e'|wordcount", "'x'|center(5) ~ '|'", "people|groupby('age')|map('first')|list", "d|attr('keys')", "s|attr('nope') is undefined", "'a'|nope", "xs|first|string|length", "xs|trim", "-1|abs", "1 + xs|length * 2", "'a,b'|replace(',', ';').split(';')", "('a,b'|replace(',', ';')).split(';')", "xs|list()|length", "none|trim", "5|upper", "xs|join(1)", "none|list", "5|join")
expressions(
    "tests", "i is defined", "zz is defined", "zz is undefined", "zz is not defined", "d.zz is defined", "n is none", "i is not none", "s is string", "i is number", "yes is number", "yes is boolean", "yes is integer", "i is integer", "f is float", "f is number", "d is mapping", "xs is mapping", "xs is iterable", "s is iterable", "i is iterable", "zz is iterable", "d is iterable", "xs is sequence", "s is sequence", "d is sequence", "i is sequence", "zz is sequence", "d.items() is sequence", "d.items() is iterable", "xs|map('string') is sequence", "yes is true", "1 is true", "n is false", "i is eq 7", "i is equalto(7)", "i is sameas i", "i is in [7]", "i is in([1])", "'a' is in 'abc'", "i is odd", "i is even", "i is divisibleby 7", "i is divisibleby(2)", "i is gt 5", "i is lt(5)", "i is ge 7", "i is ne 7", "'abc' is lower", "'ABC' is upper", "'aB' is lower", "range is callable", "'x' is callable", "not i is odd", "i is not odd", "i is odd and yes", "i is odd == true", "i is nope", "'trim' is filter", "'odd' is test", "1 is sameas true", "'a' is odd", "i is divisibleby 0", "n is not none and n is string", "d.items is defined", "namespace() is mapping", "i is number is true")
expressions(
    "functions", "range(3)|list", "range(2, 8, 3)|list", "range(5, 0, -2)|list", "range(0)|list", "range('a')", "range(1000000)|length", "dict(a=1, b='x')", "dict([('a', 1)])", "dict({'a': 1}, b=2)", "namespace(a=1).a", "namespace({'b': 2}).b", "namespace(a=1).zz is defined", "raise_exception('no ' ~ i)", "nope()", "i()", "dict(a=1)['a']", "raise_exception()", "range()", "s()", "dict(**{'q': 1})", "range(*[1, 4])|list")


def template(name, source, **variables):
    add(name, source, [], prompt=False, **(data | variables))


for name, source in {
    "loop variables": "{% for x in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}|{% endfor %}",
    "previous and next": "{% for x in xs %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem if loop.nextitem is defined else 'none' }} {% endfor %}",
    "cycle and changed": "{% for x in [1, 1, 2] %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x) }} {% endfor %}",
    "for with if": "{% for x in xs if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% endfor %}",
    "for else": "{% for x in [] %}a{% else %}empty{% endfor %}{% for x in xs if x > 9 %}a{% else %}none{% endfor %}{% for x in xs %}{{ x }}{% else %}no{% endfor %}",
    "unpacking": "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for (a, (b, c)) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for a, b in ['xy'] %}{{ b }}{{ a }}{% endfor %}",
    "bad unpacking": "{% for a, b in [1, 2] %}{% endfor %}",
    "bad unpacking count": "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "loop over none": "{% for a in none %}x{% endfor %}",
    "loop over undefined": "{% for a in zz %}x{% else %}y{% endfor %}",
    "loop over number": "{% for a in 5 %}x{% endfor %}",
    "loop over text": "{% for a in u[:4] %}{{ a }}.{% endfor %}",
    "loop over dict": "{% for k in d %}{{ k }}{% endfor %}",
    "loop over tuple without parentheses": "{% for a in 1, 2, 3 %}{{ a }}{% endfor %}",
    "break and continue": "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "nested break": "{% for x in range(3) %}{% for y in range(3) %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}",
    "break outside": "{% break %}",
    "scope of loops": "{% set x = 1 %}{% for i in xs %}{{ x }}{% set x = i %}{{ x }} {% endfor %}{{ x }}{{ i }}",
    "scope of if": "{% if yes %}{% set q = 1 %}{% endif %}{{ q }}{% if n %}{% set r = 1 %}{% endif %}{{ r is defined }}",
    "loop after inner loop": "{% for a in xs %}{% for b in [1] %}{{ loop.length }}{% endfor %}{{ loop.index }}{% endfor %}{{ loop is defined }}",
    "namespace": "{% set ns = namespace(n=0, l=[]) %}{% for x in xs %}{% set ns.n = ns.n + x %}{% set ns.l = ns.l + [x] %}{% endfor %}{{ ns.n }}{{ ns.l }}{{ ns['n'] }}",
    "not a namespace": "{% set d2 = {} %}{% set d2.x = 1 %}",
    "namespace underscore": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "set tuple": "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, %}{{ c }}",
    "block set": "{% set x %}a{{ i }}\nb{% endset %}[{{ x }}]{% set y | upper | replace('A', 'z') %}abca{% endset %}{{ y }}{% set z %}{% set inner = 5 %}{% endset %}{{ inner is defined }}",
    "with": "{% with a = 1, b = i %}{{ a }}{{ b }}{% set c = 3 %}{% endwith %}{{ a is defined }}{{ c is defined }}",
    "filter block": "{% filter upper %}abc {{ s }}{% endfilter %}{% filter replace('a', 'b')|trim %} aa {% endfilter %}",
    "macro": "{% macro m(a, b=2, c=a) %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=5, a=4) }}{{ m() }}{{ m(1, c='x') }}{{ m.name }}{{ m.arguments }}",
    "macro with surplus": "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "macro with unknown keyword": "{% macro m(a) %}{% endmacro %}{{ m(z=2) }}",
    "macro with doubled argument": "{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}",
    "macro varargs": "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, z=4) }}",
    "macro sees later values": "{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% set x = 2 %}{{ m() }}",
    "macro recursion": "{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(5) }}",
    "macro scope": "{% macro m() %}{% set x = 5 %}{{ x }}{% endmacro %}{{ m() }}{{ x is defined }}",
    "macro result is a string": "{% macro m() %} a {% endmacro %}{{ m()|trim|length }}{{ m() == ' a ' }}{{ (m() ~ 'b').strip() }}",
    "call block": "{% macro box(title) %}<{{ title }}>{{ caller() }}</>{% endmacro %}{% call box('t') %}in {{ i }}{% endcall %}",
    "call block with arguments": "{% macro each(items) %}{% for x in items %}{{ caller(x, loop.index) }}{% endfor %}{% endmacro %}{% call(v, k) each(xs) %}{{ k }}:{{ v }} {% endcall %}",
    "caller not taken": "{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}",
    "if elif else": "{% if n %}a{% elif i == 7 %}b{% else %}c{% endif %}{% if n %}a{% elif n %}b{% else %}c{% endif %}",
    "comments": "a{# x {{ y }} {% z %} #}b{#- c -#}  d\n  {# e #}\nf",
    "raw": "{% raw %}{{ x }} {% if %}{% endraw %}|  {%- raw -%}  {{ y }}  {%- endraw -%}  |",
    "trim blocks": "a\n{% if yes %}\nb\n{% endif %}\nc\n  {% if yes %}  \nd{% endif %}\n\n{{ i }}\n\ne",
    "lstrip blocks": "  {% if yes %}x{% endif %}\n\t {% set a = 1 %}\n y {% set b = 1 %} z\n  {{ i }}",
    "lstrip after trimmed newline": "{% if yes %}\n    {% if yes %}\n    a\n    {% endif %}\n{% endif %}\n",
    "plus": "a\n  {%+ if yes +%}\nb{% endif %}  {%+ set a = 1 +%}\n c",
    "minus": "a \n {%- if yes -%} \n b \n {%- endif -%} \n c {{- i -}} d",
    "trailing newline": "a\n",
    "two trailing newlines": "a\n\n",
    "carriage returns": "a\r\nb\rc{{ '\r\n'|length }}\r\n{% if yes %}\r\nd{% endif %}",
    "braces": "{{ {'a': {'b': 1}} }}{{ '}}' }}{{ '%}' }} { } {a} }} %}",
    "strings": r"""{{ 'a\nb\tc\\d\'e\"f\x41\u00e9\101\z' }}{{ "it's" }}{{ 'multi
line' }}""",
    "generator is used up": "{% set g = xs|map('string') %}{{ g|list }}{{ g|list }}",
    "view is not": "{% set g = d.items() %}{{ g|list|length }}{{ g|list|length }}",
    "print": "{% print i, s %}",
    "unknown tag": "{% nope %}",
    "missing end": "{% if yes %}a",
    "missing brace": "{{ i",
    "bad end": "{% if yes %}{% endfor %}",
    "empty expression": "{{ }}",
    "unbalanced": "{{ (i }}",
    "stray bracket": "{{ i) }}",
    "assign to constant": "{% set true = 1 %}",
    "do": "{% do xs.append(1) %}",
    "unknown filter not reached": "{% if n %}{{ i|nope }}{% endif %}ok",
    "unknown filter": "{{ i|nope }}",
    "keyword argument before plain": "{{ dict(a=1, 2) }}",
    "if with tuple": "{% if 0, %}a{% endif %}",
    "set chain": "{% set x = xs|map('string')|list %}{{ x[0] + x[1] }}",
    "attribute after call": "{{ d.get('items')[0] }}{{ [1, 2].index(2) }}",
    "colon after head": "{% if yes: %}a{% endif %}{% for x in xs: %}{{ x }}{% endfor %}",
    "conditional in for": "{% for x in xs if x is odd and yes %}{{ x }}{% endfor %}",
    "conditional iterable": "{% for x in (xs if yes else []) %}{{ x }}{% endfor %}",
    "not in test argument": "{{ 'x' if i is divisibleby 7 and not n else 'y' }}{{ i is eq 3 + 4 }}",
    "whitespace names": "{{i}}{{ i}}{{i }}{%if yes%}a{%endif%}{%-if yes-%} b {%-endif-%}",
    "minus one": "{{-1}}{{ -1 }}{{- -1 -}}",
    "dict in loop": "{% for p in people %}{{ p.name }}{{ p['tags'] }}{{ p.tags|d([])|length }} {% endfor %}",
    "shadowed function": "{% set range = 5 %}{{ range }}",
    "unicode names": "{% set größe = 3 %}{{ größe + 1 }}",
    "list of undefined": "{{ [zz]|length }}{{ {'a': zz} }}",
    "message objects": "{{ messages|length }}{{ messages == [] }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}",
}.items():
    template(name, source)

path = pathlib.Path(__file__).parent.parent / "MartletTokenizersTests/Fixtures/chat_templates.json"
# What occurs often is written once.
shared = {"messages": [], "template": [], "tools": [], "variables": []}
for case in cases:
    for key, values in shared.items():
        if key in case:
            if case[key] not in values:
                values.append(case[key])
            case[key] = values.index(case[key])
path.write_text(json.dumps(shared | {"cases": cases}, ensure_ascii=True, separators=(",", ":")))
print(len(cases), "cases,", sum("error" in c for c in cases), "of them errors,", path.stat().st_size, "bytes")
